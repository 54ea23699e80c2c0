//! JSON that a tool printed, read strictly: what two readers could understand differently is refused.
//!
//! Refused are: a key that stands twice in an object (RFC 8259 leaves its meaning open), nesting deeper than
//! [`DEPTH_MAX`], numbers that JSON does not have (`NaN`, `Infinity`), text behind the document, and more than
//! [`DOCUMENT_MAX`] bytes.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest document that is read; the largest real one, a level 4 diagnosis of eight GPUs, has about 100 KiB.
pub const DOCUMENT_MAX: usize = 8 << 20;

/// The deepest nesting that is read; the deepest real one has about ten levels.
pub const DEPTH_MAX: usize = 64;

/// Why a text is not a JSON document.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// There is nothing.
    #[error("there is no output")]
    Empty,
    /// There is no `{` in it.
    #[error("there is no JSON document in the output")]
    NoDocument,
    /// It is longer than any real one.
    #[error("the document is longer than {DOCUMENT_MAX} bytes")]
    TooLong,
    /// It breaks a rule of JSON or of this reader.
    #[error("the document cannot be read")]
    Malformed(#[source] serde_json::Error),
}

/// The document that `text` is.
///
/// # Errors
/// See [`JsonError`].
pub fn document(text: &[u8]) -> Result<Value, JsonError> {
    let text = trimmed(text)?;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: 0 }
        .deserialize(&mut reader)
        .map_err(JsonError::Malformed)?;
    reader.end().map_err(JsonError::Malformed)?;
    Ok(value)
}

/// The object that begins with the first `{` of `text`, whatever stands before and behind it: tools print banners.
///
/// # Errors
/// See [`JsonError`].
pub fn document_after_banner(text: &[u8]) -> Result<Value, JsonError> {
    let text = trimmed(text)?;
    let start = text
        .iter()
        .position(|byte| *byte == b'{')
        .ok_or(JsonError::NoDocument)?;
    let mut reader = serde_json::Deserializer::from_slice(&text[start..]);
    Strict { depth: 0 }
        .deserialize(&mut reader)
        .map_err(JsonError::Malformed)
}

fn trimmed(text: &[u8]) -> Result<&[u8], JsonError> {
    if text.len() > DOCUMENT_MAX {
        return Err(JsonError::TooLong);
    }
    // White space of JSON alone (RFC 8259, 2): ASCII has a form feed as well, which no other reader takes.
    let is_content = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = text.iter().position(is_content).unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(is_content)
        .map_or(start, |last| last + 1);
    let text = &text[start..end];
    if text.is_empty() {
        Err(JsonError::Empty)
    } else {
        Ok(text)
    }
}

/// Builds a [`Value`] and refuses what the module's doc says.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Strict, E> {
        let depth = self.depth + 1;
        if depth > DEPTH_MAX {
            return Err(E::custom(format_args!(
                "nested deeper than {DEPTH_MAX} levels"
            )));
        }
        Ok(Strict { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut all = Vec::new();
        while let Some(element) = elements.next_element_seed(deeper)? {
            all.push(element);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(deeper)?;
            if all.insert(key.clone(), value).is_some() {
                return Err(de::Error::custom(format_args!(
                    "the key {key:?} stands twice"
                )));
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_found_between_banners() {
        let text = b"WARNING: something\n {\"a\": [1, {\"b\": null}]} \nSuccessfully ran\n";
        assert_eq!(
            document_after_banner(text).unwrap(),
            json!({"a": [1, {"b": null}]})
        );
        assert!(matches!(document(text), Err(JsonError::Malformed(_))));
    }

    #[test]
    fn nothing_is_not_a_document() {
        assert!(matches!(document(b" \n"), Err(JsonError::Empty)));
        assert!(matches!(
            document_after_banner(b"Error: no connection\n"),
            Err(JsonError::NoDocument)
        ));
    }

    #[test]
    fn what_could_be_understood_differently_is_refused() {
        for text in [
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": {\"b\": 1, \"b\": 1}}",
            "{\"a\": NaN}",
            "{\"a\": 1e999}",
            "{\"a\": 1} x",
        ] {
            assert!(document(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_has_a_limit_and_costs_no_stack() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(document(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(document(nested(DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(document("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn a_document_has_a_size_limit() {
        assert!(matches!(
            document(&vec![b'1'; DOCUMENT_MAX + 1]),
            Err(JsonError::TooLong)
        ));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert!(document(b"{\"a\": \"\xff\"}").is_err());
    }

    proptest! {
        #[test]
        fn a_cut_object_is_never_a_document(cut in 1_usize..40) {
            let text = br#"{"a": [1, 2.5, "x"], "b": {"c": null}}"#;
            let cut = cut.min(text.len() - 1);
            prop_assert!(document(&text[..cut]).is_err());
            prop_assert!(document_after_banner(&text[..cut]).is_err());
        }

        #[test]
        fn what_is_read_is_what_serde_json_reads(text in "[\\[\\]{}:,0-9a-z\" .-]{0,60}") {
            if let Ok(value) = document(text.as_bytes()) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
            }
        }
    }
}
