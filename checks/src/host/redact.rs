//! Secrets taken out of text that is kept: a result travels to log stores and tickets.
//!
//! Takes out keys and tokens of known shapes and the values of assignments whose name says that they are secret. What
//! identifies hardware stays: digests, UUIDs and serial numbers. Every rule looks at each byte a bounded number of times.

/// What stands in place of a secret.
const GONE: &str = "[redacted]";

/// Beginnings of tokens, and how many characters a real one has at least.
const TOKENS: &[(&str, usize)] = &[
    ("AKIA", 20),
    ("ASIA", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 30),
    ("hf_", 20),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("sk-", 20),
    ("nvapi-", 20),
    // A JSON Web Token begins with `{"` in base64.
    ("eyJ", 30),
];

/// Parts of names whose values are secret.
const SECRET_NAMES: &[&str] = &[
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "authorization",
    "passphrase",
    "cookie",
    // MYSQL_PWD; PWD and OLDPWD are directories.
    "_pwd",
    // X-Amz-Signature, X-Goog-Signature: whoever has the signed URL has the object.
    "_signature",
];

/// Where a URL that holds a secret ends in it: whoever knows the rest may post there.
const SECRET_PATHS: &[&str] = &["hooks.slack.com/services/", "hooks.slack.com/workflows/"];

/// How long the signature in a URL of Azure (`sig=`) is at least; a `sig=11` of the kernel is none.
const SIG_MIN: usize = 16;

/// The text without its secrets.
pub fn text(text: &str) -> String {
    let text = private_keys(text);
    let mut lines = text
        .split_inclusive('\n')
        .map(|line| assignments(&words(line)));
    let mut clean = String::with_capacity(text.len());
    for line in &mut lines {
        clean.push_str(&line);
    }
    clean
}

/// The words of a command line without their secrets, the values of options such as `--token` among them.
pub fn command_line(words: &[String]) -> Vec<String> {
    let before = std::iter::once("").chain(words.iter().map(String::as_str));
    let of_curl = words.first().is_some_and(|program| is_curl(program));
    let clean = |(before, word): (&str, &String)| {
        let user = word.split_once(':').map(|(user, _)| user);
        match user.filter(|_| of_curl && is_user_option(before)) {
            Some(user) => format!("{user}:{GONE}"),
            None if is_secret_option(before) => GONE.to_owned(),
            None => text(word),
        }
    };
    before.zip(words).map(clean).collect()
}

/// The value of a variable, or what stands for it if its name or its shape says that it is secret.
pub fn value(name: &str, value: &str) -> String {
    if is_secret(&name.to_ascii_lowercase()) {
        return GONE.to_owned();
    }
    text(value)
}

fn is_secret(lower_case_name: &str) -> bool {
    let name = lower_case_name.replace('-', "_");
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// Whether a word is an option whose value is the next word and secret.
fn is_secret_option(word: &str) -> bool {
    word.starts_with('-') && !word.contains('=') && is_secret(&word.to_ascii_lowercase())
}

/// Takes out what stands between the marks of a private key, or all that follows if the end is missing.
fn private_keys(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN ") {
        let (before, block) = rest.split_at(start);
        clean.push_str(before);
        let title = block.lines().next().unwrap_or_default();
        if !title.contains("PRIVATE KEY") {
            clean.push_str("-----BEGIN ");
            rest = &block["-----BEGIN ".len()..];
            continue;
        }
        clean.push_str(GONE);
        let end = block
            .find("-----END ")
            .and_then(|end| Some(end + block[end..].find("KEY-----")? + "KEY-----".len()));
        rest = end.map_or("", |end| &block[end..]);
    }
    clean.push_str(rest);
    clean
}

/// Takes out tokens of known shapes, the credentials of URLs, and what follows `Bearer` and `Basic`.
fn words(line: &str) -> String {
    let is_token_char = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '_' | '-' | '.' | '+' | '/' | '=' | ':' | '@' | '%' | '~')
    };
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    let (mut after_scheme, mut after_option) = (false, false);
    let (mut of_curl, mut after_user) = (false, false);
    while let Some(first) = rest.chars().next() {
        if !is_token_char(first) {
            let blank = first == ' ' || first == '\t';
            after_scheme &= blank;
            after_option &= blank || first == '\'' || first == '"';
            after_user &= blank || first == '\'' || first == '"';
            clean.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        let (word, following) = rest.split_at(end);
        let glued = word.strip_prefix("-u").filter(|_| of_curl);
        if after_option || (after_scheme && word.len() >= 8) {
            clean.push_str(GONE);
        } else if let Some((user, _)) = glued
            .or(after_user.then_some(word))
            .and_then(|user| user.split_once(':'))
        {
            let option = if glued.is_some() { "-u" } else { "" };
            clean.push_str(&format!("{option}{user}:{GONE}"));
        } else {
            clean.push_str(&word_without_secret(word));
        }
        after_scheme = matches!(
            word.to_ascii_lowercase().trim_end_matches(':'),
            "bearer" | "basic"
        );
        after_option = is_secret_option(word);
        after_user = of_curl && is_user_option(word);
        of_curl |= is_curl(word);
        rest = following;
    }
    clean
}

/// Whether a word is the program `curl`, whose users are given with their passwords.
fn is_curl(word: &str) -> bool {
    word == "curl" || word.ends_with("/curl")
}

fn is_user_option(word: &str) -> bool {
    ["-u", "--user", "-U", "--proxy-user"].contains(&word)
}

fn word_without_secret(word: &str) -> String {
    for path in SECRET_PATHS {
        if let Some(at) = word.find(path) {
            return format!("{}{GONE}", &word[..at + path.len()]);
        }
    }
    if let Some((scheme, rest)) = word.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        if let Some(at) = authority.rfind('@') {
            return format!("{scheme}://{GONE}{}", &rest[at..]);
        }
    }
    // A token can stand behind `name=`, `name:` or a path.
    let starts = std::iter::once(0).chain(
        word.char_indices()
            .filter(|(_, c)| matches!(c, '=' | ':' | '/' | '@'))
            .map(|(at, _)| at + 1),
    );
    for start in starts {
        let part = &word[start..];
        let length = part
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))
            .unwrap_or(part.len());
        if TOKENS
            .iter()
            .any(|(mark, least)| part.starts_with(mark) && length >= *least)
        {
            return format!("{}{GONE}{}", &word[..start], &part[length..]);
        }
    }
    word.to_owned()
}

/// Takes out the values of `NAME=value`, `name: value` and `"name": "value"` where the name says that it is secret.
fn assignments(line: &str) -> String {
    let lower = line.to_ascii_lowercase().replace('-', "_");
    let mut clean = String::with_capacity(line.len());
    let mut done = 0;
    for (at, mark) in line.char_indices().filter(|(_, c)| matches!(c, '=' | ':')) {
        if at < done {
            continue;
        }
        let name = name_before(&lower[done..at]);
        let is_sig = name == "sig";
        if !is_sig && !is_secret(name) {
            continue;
        }
        let is_cookie = name.ends_with("cookie");
        let after = &line[at + mark.len_utf8()..];
        let value = after.trim_start_matches([' ', '\t', '"', '\'']);
        let start = at + mark.len_utf8() + (after.len() - value.len());
        let length = value
            // A cookie's value has parts.
            .find(|c| matches!(c, '\n' | '"' | '\'') || !is_cookie && matches!(c, ',' | ';' | '&'))
            .unwrap_or(value.len());
        // An unquoted value ends at the next blank, except in a header, whose value is the whole line.
        let blank = value[..length].find([' ', '\t']).filter(|_| mark == '=');
        let length = blank.unwrap_or(length);
        let is_short = is_sig && length < SIG_MIN;
        if length == 0 || is_short || value[..length].trim() == GONE {
            continue;
        }
        clean.push_str(&line[done..start]);
        clean.push_str(GONE);
        done = start + length;
    }
    clean.push_str(&line[done..]);
    clean
}

/// The name that an assignment's text ends with.
fn name_before(text: &str) -> &str {
    let text = text.trim_end_matches([' ', '\t', '"', '\'']);
    let start = text
        .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.'))
        .map_or(0, |at| {
            at + text[at..].chars().next().map_or(1, char::len_utf8)
        });
    &text[start..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_secret_of_the_corpus_is_left() {
        let secret = "s3cr3tV4lu3s3cr3tV4lu3s3cr3tV4lu3";
        for (shape, part) in [
            ("AWS_SECRET_ACCESS_KEY=%", secret),
            ("export HF_TOKEN=% && run", secret),
            ("{\"password\": \"%\", \"user\": \"x\"}", secret),
            ("Authorization: Bearer %", secret),
            ("authorization: Basic %", secret),
            ("curl -H 'X-Api: Bearer %' host", secret),
            ("db_password = '%'", secret),
            ("--api-key=% --other", secret),
            ("tool --token % --other", secret),
            ("tool --password '%'", secret),
            ("MY_API_KEY=%", secret),
            ("https://user:%@example.org/path", secret),
            ("proxy http://%@host:80", secret),
            ("MYSQL_PWD=% mysqldump", secret),
            ("passphrase: %", secret),
            ("GET /b?sv=2024&sig=%&se=1", secret),
            ("https://b.s3.amazonaws.com/k?X-Amz-Signature=%", secret),
            ("curl -u root:% host", secret),
            ("/usr/bin/curl -s --user 'root:%' host", secret),
            ("curl -uroot:% host", secret),
            ("posts to https://hooks.slack.com/services/T0/B0/%", secret),
            ("Cookie: a=b; session=%; c=d", secret),
            ("set-cookie: session=%; HttpOnly", secret),
            ("key %", "AKIAIOSFODNN7EXAMPLE"),
            ("session %.", "ASIAIOSFODNN7EXAMPLE"),
            ("x=%", "ghp_0123456789abcdefghij0123456789abcdef"),
            ("x:%", "hf_abcdefghijklmnopqrstuvwxyz"),
            (
                "got %",
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\n%\n-----END RSA PRIVATE KEY-----\nafter",
                secret,
            ),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n%", secret),
        ] {
            let clean = text(&shape.replace('%', part));
            assert!(!clean.contains(part), "{shape} leaks: {clean}");
            assert!(clean.contains(GONE), "{shape}: {clean}");
        }
    }

    #[test]
    fn what_identifies_hardware_stays() {
        for line in [
            "GPU-3a1b8f3e-9b5a-11ee-8c90-0242ac120002 serial 1320922012345",
            "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "0000:b9:00.0 rdmap16s27 NCCL_DEBUG=INFO FI_PROVIDER=efa time: 12:30:00",
            "{\"error_id\": 95, \"warning\": \"GPU 3: fell off\"}",
            "https://docs.nvidia.com/deploy/xid-errors/index.html",
            "PWD=/root OLDPWD=/home audit: sig=31 pid=1",
            "dcgmi diag -u 0000:b9:00.0",
        ] {
            assert_eq!(text(line), line);
        }
    }

    #[test]
    fn an_option_s_value_and_a_variable_s_go_by_their_names() {
        let line = ["tool", "--token", "abc", "-r", "32"].map(str::to_owned);
        assert_eq!(command_line(&line), ["tool", "--token", GONE, "-r", "32"]);
        let line = ["curl", "-u", "root:abc", "host"].map(str::to_owned);
        assert_eq!(command_line(&line)[2], format!("root:{GONE}"));
        assert_eq!(value("NCCL_API_TOKEN", "abc"), GONE);
        assert_eq!(value("NCCL_DEBUG", "INFO"), "INFO");
    }

    #[test]
    fn what_follows_a_secret_stays() {
        assert_eq!(
            text("TOKEN=abcdefgh next=1"),
            format!("TOKEN={GONE} next=1")
        );
        assert_eq!(
            text("{\"token\": \"abc\", \"gpu\": 3}"),
            format!("{{\"token\": \"{GONE}\", \"gpu\": 3}}")
        );
    }

    proptest! {
        #[test]
        fn a_secret_is_found_whatever_stands_before_it(before in "\\PC{0,200}") {
            let before = before.replace("planted", "");
            let clean = text(&format!("{before}\nHF_TOKEN=hf_plantedplantedplanted\n"));
            prop_assert!(!clean.contains("planted"), "{}", clean);
        }
    }
}
