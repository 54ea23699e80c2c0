//! A library and its calls, found by name when the program runs.

use std::path::{Path, PathBuf};

use libloading::Library;

/// Why a library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not there, or something that it needs is not.
    #[error("`{name}` cannot be loaded: {why}; {advice}")]
    Absent {
        /// Its name or path.
        name: String,
        /// What the loader said.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// This program has no loader.
    #[error(
        "`{name}` cannot be loaded: this dhc is a static build, which loads no library; use a dynamic one for this check"
    )]
    Static {
        /// Its name or path.
        name: String,
    },
    /// It lacks a call.
    #[error("`{name}` has no `{symbol}`: it is too old or another library; {advice}")]
    Symbol {
        /// Its name or path.
        name: String,
        /// The call.
        symbol: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

/// What a library answered to a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text} ({code})")]
pub struct CallError {
    /// The call.
    pub call: &'static str,
    /// The library's number of the error.
    pub code: i32,
    /// Its own text, and what it said last where it says more.
    pub text: String,
    /// What it speaks of.
    pub of: Of,
}

/// What an error of a library speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// How it was called, what is installed or set, or what others hold: nothing was seen to break.
    TheCall,
    /// The device, or the library's own work on it.
    TheDevice,
    /// Another rank, or the way to it.
    AnotherRank,
}

/// A library that stays loaded as long as its calls are used.
pub(crate) struct Loaded {
    library: Library,
    name: String,
    advice: &'static str,
}

impl Loaded {
    /// Loads the library at `path`, or the one that the loader finds under `name`.
    pub(crate) fn open(
        path: Option<&Path>,
        name: &str,
        advice: &'static str,
    ) -> Result<Loaded, LoadError> {
        let wanted = path.map_or_else(|| PathBuf::from(name), Path::to_owned);
        let name = wanted.display().to_string();
        if cfg!(target_feature = "crt-static") {
            return Err(LoadError::Static { name });
        }
        // SAFETY: loading one of NVIDIA's libraries runs its constructors, which is what every program that uses it does.
        match unsafe { Library::new(&wanted) } {
            Ok(library) => Ok(Loaded {
                library,
                name,
                advice,
            }),
            Err(error) => Err(LoadError::Absent {
                name,
                why: error.to_string(),
                advice,
            }),
        }
    }

    /// The call of this name.
    ///
    /// # Safety
    /// `F` is the type that the library's header gives to it, and is not called after `self` is gone.
    pub(crate) unsafe fn call<F: Copy>(&self, symbol: &'static str) -> Result<F, LoadError> {
        // SAFETY: as the caller promises.
        match unsafe { self.library.get::<F>(symbol.as_bytes()) } {
            Ok(found) => Ok(*found),
            Err(_) => Err(LoadError::Symbol {
                name: self.name.clone(),
                symbol,
                advice: self.advice,
            }),
        }
    }
}

/// A table of calls: field, symbol, arguments. Every call returns the library's number of an error.
macro_rules! calls {
    ($(#[$doc:meta])* $table:ident { $($field:ident = $symbol:literal ($($argument:ty),*);)* }) => {
        $(#[$doc])*
        pub(crate) struct $table {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)*
            /// Keeps the calls valid.
            #[expect(dead_code, reason = "it is held, not used")]
            library: $crate::library::Loaded,
        }

        impl $table {
            pub(crate) fn find(library: $crate::library::Loaded) -> Result<Self, $crate::library::LoadError> {
                Ok($table {
                    // SAFETY: the types are those of the library's header, and the table holds the library.
                    $($field: unsafe { library.call($symbol)? },)*
                    library,
                })
            }
        }
    };
}
pub(crate) use calls;

/// The text at a pointer to a constant string of a library.
///
/// # Safety
/// The pointer is null or to a text that ends in nul and stays.
pub(crate) unsafe fn constant(text: *const std::ffi::c_char) -> Option<String> {
    // SAFETY: not null, and as the caller promises.
    (!text.is_null()).then(|| {
        unsafe { std::ffi::CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    })
}
