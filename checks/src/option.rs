//! What the user may set about a check, and to what. Refused before anything starts, so that a typing mistake costs no run.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use crate::check::CheckError;

/// One thing about a check that the user may set.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What it is when the user says nothing. Empty where it is not set then; it can always be set to this.
    pub default: &'static str,
    /// What else it can be set to.
    pub values: Values,
    /// One sentence: what it does.
    pub about: &'static str,
}

/// What an option can be set to. Shown as what a user has to write.
#[derive(Debug)]
pub enum Values {
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// A whole number that is a multiple of another.
    Multiple {
        /// Of this.
        of: u64,
        /// At most this.
        to: u64,
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// A program, by name or whole path.
    Program,
    /// The whole path of a file.
    Path,
    /// Whole paths of so many directories at most.
    Directories(usize),
    /// What `fits`.
    Text {
        /// What that is.
        form: &'static str,
        /// Whether a text is.
        fits: fn(&str) -> bool,
    },
}

impl OptionSpec {
    /// Whether it can be set to `value`, as an option of `check`.
    ///
    /// # Errors
    /// When not; says what to write.
    pub fn accept(&self, check: &'static str, value: &str) -> Result<(), CheckError> {
        if value == self.default || self.values.allow(value) {
            return Ok(());
        }
        Err(self.refusal(check, value, format!("write {}", self.values)))
    }

    /// That it cannot be `value`, and why.
    pub(crate) fn refusal(&self, check: &'static str, value: &str, why: String) -> CheckError {
        CheckError::Option {
            check,
            option: self.name,
            value: value.escape_debug().to_string(),
            why,
        }
    }

    /// The whole number that it is set to in `options`, for a budget; the default where that is refused.
    pub(crate) fn number_in(&self, options: &BTreeMap<String, String>) -> u64 {
        let set = options.get(self.name).map(String::as_str);
        let value = set.filter(|value| self.values.allow(value));
        value.unwrap_or(self.default).parse().unwrap_or(0)
    }

    /// The time that it sets in seconds, for a budget.
    pub(crate) fn seconds_in(&self, options: &BTreeMap<String, String>) -> Duration {
        Duration::from_secs(self.number_in(options))
    }
}

impl Values {
    fn allow(&self, value: &str) -> bool {
        let number = || {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            value.parse::<u64>().ok().filter(|_| digits)
        };
        let is_plain = !value.is_empty() && !value.contains(char::is_control);
        match self {
            Values::Number(range) => number().is_some_and(|number| range.contains(&number)),
            Values::Multiple { of, to } => {
                number().is_some_and(|number| (*of..=*to).contains(&number) && number % of == 0)
            }
            Values::Words(words) => words.contains(&value),
            Values::Program => {
                is_plain
                    && !value.starts_with('-')
                    && (Path::new(value).is_absolute() || !value.contains('/'))
            }
            Values::Path => is_plain && Path::new(value).is_absolute(),
            Values::Directories(most) => {
                let mut paths = std::env::split_paths(value);
                is_plain
                    && paths.all(|path| path.is_absolute())
                    && std::env::split_paths(value).count() <= *most
            }
            Values::Text { fits, .. } => is_plain && fits(value),
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Values::Number(range) => {
                write!(
                    f,
                    "a whole number from {} to {}",
                    range.start(),
                    range.end()
                )
            }
            Values::Multiple { of, to } => write!(f, "a multiple of {of}, at most {to}"),
            Values::Words(words) => f.write_str(&words.join(" or ")),
            Values::Program => f.write_str("the name or the whole path of a program"),
            Values::Path => f.write_str("a whole path"),
            Values::Directories(most) => {
                write!(f, "at most {most} whole paths with colons between them")
            }
            Values::Text { form, .. } => f.write_str(form),
        }
    }
}
