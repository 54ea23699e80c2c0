//! Single values of the JSON: what is a number, a name or a text, and what is one of DCGM's blanks.

use serde_json::{Map, Value};

use super::DcgmiError;

/// Longest text that is kept. DCGM's own messages have at most 1,024 bytes.
const TEXT_BYTES_MAX: usize = 4_096;
/// Longest name of a test or category that is kept; DCGM's own have at most 25 bytes.
const NAME_BYTES_MAX: usize = 64;
/// How much of an output without a document is quoted: two lines are enough to see what it is.
pub(super) const SAID_BYTES_MAX: usize = 200;
/// GPUs that DCGM knows at most, far above its `DCGM_MAX_NUM_DEVICES` of 32.
const GPU_ID_MAX: u32 = 1_023;
/// `DCGM_INT32_BLANK` and `DCGM_INT64_BLANK`: these and the few numbers above them say "no value", "not supported" …
const INT32_BLANK: u64 = 0x7fff_fff0;
const INT64_BLANK: u64 = 0x7fff_ffff_ffff_fff0;

pub(super) type Object = Map<String, Value>;

/// DCGM's id of a GPU, as text.
pub(super) fn gpu_of_text(text: &str) -> Result<u32, DcgmiError> {
    let id = text.trim().parse().ok();
    gpu_id(id.ok_or(shape("gpu_id", "the number of a GPU"))?)
}

/// DCGM's id of a GPU.
pub(super) fn gpu_id(id: u32) -> Result<u32, DcgmiError> {
    let known = (id <= GPU_ID_MAX).then_some(id);
    known.ok_or(shape("gpu_id", "the number of a GPU"))
}

/// A number that is not one of DCGM's blanks.
pub(super) fn number(value: Option<&Value>) -> Option<u32> {
    let value = value.filter(|value| !is_blank(value))?;
    value.as_u64()?.try_into().ok()
}

/// Whether it is one of DCGM's blanks, of 32 or 64 bits.
pub(super) fn is_blank(value: &Value) -> bool {
    let blank = |number| number >= INT64_BLANK || (INT32_BLANK..=0x7fff_ffff).contains(&number);
    value.as_u64().is_some_and(blank)
}

/// A text that is not one of DCGM's blanks (`<<<NULL>>>`, `<<<NOT_SUPPORTED>>>` …) nor empty.
pub(super) fn word(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    let blank = text.is_empty() || text.starts_with("<<<");
    (!blank).then(|| bounded(text))
}

/// A name; DCGM's own are short.
pub(super) fn short(value: &Value, at: &'static str) -> Result<String, DcgmiError> {
    let name = value.as_str().ok_or(shape(at, "a text"))?;
    Ok(beginning(name, NAME_BYTES_MAX).to_owned())
}

/// A text.
pub(super) fn string(value: &Value, at: &'static str) -> Result<String, DcgmiError> {
    value.as_str().map(bounded).ok_or(shape(at, "a text"))
}

/// An object.
pub(super) fn object<'a>(value: &'a Value, at: &'static str) -> Result<&'a Object, DcgmiError> {
    value.as_object().ok_or(shape(at, "an object"))
}

/// A list.
pub(super) fn array<'a>(value: &'a Value, at: &'static str) -> Result<&'a [Value], DcgmiError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or(shape(at, "a list"))
}

/// The elements of a list without its holes.
pub(super) fn present<'a>(
    value: &'a Value,
    at: &'static str,
) -> Result<impl Iterator<Item = &'a Value>, DcgmiError> {
    Ok(array(value, at)?
        .iter()
        .filter(|element| !element.is_null()))
}

/// The text, or as much of its beginning as is kept.
pub(super) fn bounded(text: &str) -> String {
    beginning(text, TEXT_BYTES_MAX).to_owned()
}

/// As much of the text as fits into this many bytes.
pub(super) fn beginning(text: &str, bytes_max: usize) -> &str {
    let fits = (0..=bytes_max.min(text.len())).rev();
    let end = fits.into_iter().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// The error of something at `at` that is not what every known release has there.
pub(super) const fn shape(at: &'static str, wanted: &'static str) -> DcgmiError {
    DcgmiError::Shape { at, wanted }
}
