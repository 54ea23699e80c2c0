//! The JSON of `dcgmi diag` by release, read into one [`Diagnosis`].
//!
//! | | 2.0 – 3.0 | 3.1, 3.2 | 3.3.0, 3.3.1 | 3.3.3 – 3.3.9 | 4.x |
//! |---|---|---|---|---|---|
//! | root | `DCGM GPU Diagnostic` | same | same | same | `DCGM Diagnostic` |
//! | versions | – | top level, from 3.1.8 | same | same | `metadata` |
//! | device ids | – | `GPU Device IDs`, from 3.1.8 | + `GPU Device Serials` | same | `entity_groups` |
//! | which GPU | `gpu_ids`: `"0"` | same | `gpu_id`: `"0"` | same | `entity_group_id`, `entity_id` |
//! | warnings of a plugin | string | string, `error_id` beside it from 3.2 | array of `warning` objects | same | same |
//! | rows of `Deployment` | one result | same | one result per error, the first has the status | one result, `warnings` objects, `gpu_id` a number | test `software` |
//! | the whole test | – | – | – | – | `test_summary` |
//!
//! `results` and `warnings` can hold `null`: they are indexed by GPU and by error. A run that failed as a whole is
//! `{root: {runtime_error}}`; repeated runs are `{iterations: [document or null …], "Overall Result", "Warning"}`.

use serde_json::Value;

use super::fields::{
    Object, SAID_BYTES_MAX, array, beginning, bounded, gpu_id, gpu_of_text, is_blank, number,
    object, present, shape, short, string, word,
};
use super::{DcgmError, DcgmiError, Diagnosis, Entity, Grade, SOFTWARE, Status, TestResult};
use crate::format::json::{self, JsonError};

/// Results in a document: DCGM reports at most 20 tests on 256 entities; ten times that is damage, not data.
const RESULTS_MAX: usize = 65_536;
const TOO_MANY: DcgmiError = shape("results", "no more results than DCGM can give");

/// `dcgm_field_entity_group_t`.
const GROUP_NONE: u32 = 0;
const GROUP_GPU: u32 = 1;
const GROUP_CPU: u32 = 7;

/// Reads the standard output of `dcgmi diag -r LEVEL -j`, whatever its release, with or without a banner before it.
///
/// # Errors
/// When it is not such a document, whole. An output that was cut off anywhere is an error too.
pub fn read(output: &[u8]) -> Result<Diagnosis, DcgmiError> {
    let document = json::document_after_banner(output).map_err(|error| match error {
        JsonError::Empty => DcgmiError::Empty,
        JsonError::NoDocument => DcgmiError::NoDocument {
            said: beginning(&String::from_utf8_lossy(output), SAID_BYTES_MAX)
                .trim()
                .escape_debug()
                .to_string(),
        },
        JsonError::TooLong | JsonError::Malformed(_) => DcgmiError::Damaged(error),
    })?;
    let document = object(&document, "the document")?;
    match document.get("iterations") {
        Some(iterations) => iterated(document, iterations),
        None => single(document),
    }
}

/// The document of one run.
fn single(document: &Object) -> Result<Diagnosis, DcgmiError> {
    let root = match (
        document.get("DCGM Diagnostic"),
        document.get("DCGM GPU Diagnostic"),
    ) {
        (Some(_), Some(_)) => return Err(shape("the document", "one root key, not two")),
        (Some(root), None) | (None, Some(root)) => object(root, "the root")?,
        // 3.3 leaves the root out when nothing at all ran.
        (None, None) if document.contains_key("version") || document.contains_key("metadata") => {
            return Err(DcgmiError::NothingRan);
        }
        (None, None) => {
            return Err(shape(
                "the document",
                "`DCGM Diagnostic` or `DCGM GPU Diagnostic`",
            ));
        }
    };
    let mut diagnosis = inventory(document, root)?;
    diagnosis.runtime_error = match root.get("runtime_error") {
        None => None,
        Some(text) => Some(string(text, "runtime_error")?),
    };
    if let Some(categories) = root.get("test_categories") {
        for category in present(categories, "test_categories")? {
            read_category(object(category, "a category")?, &mut diagnosis)?;
        }
    }
    if diagnosis.results.is_empty() && diagnosis.runtime_error.is_none() {
        return Err(DcgmiError::NothingRan);
    }
    Ok(diagnosis)
}

/// The document of `--iterations`: the results of all runs together.
///
/// A run that failed leaves `null` or, since the writer does not clear its buffer, the document of the run before it. So
/// an overall result that is not `Pass`, and that no result accounts for, is a runtime error.
fn iterated(document: &Object, iterations: &Value) -> Result<Diagnosis, DcgmiError> {
    let mut whole = Diagnosis::default();
    let mut lost = None;
    let iterations = array(iterations, "iterations")?;
    for (index, iteration) in iterations.iter().enumerate() {
        if iteration.is_null() {
            lost = Some(index);
            continue;
        }
        let run = single(object(iteration, "an iteration")?)?;
        whole.results.extend(run.results);
        whole.remarks.extend(run.remarks);
        whole.gpus.extend(run.gpus);
        whole.has_inventory |= run.has_inventory;
        whole.runtime_error = whole.runtime_error.or(run.runtime_error);
        if whole.dcgm_version.is_none() {
            whole.dcgm_version = run.dcgm_version;
            whole.driver_version = run.driver_version;
            whole.gpu_device_ids = run.gpu_device_ids;
            whole.serials = run.serials;
        }
    }
    let overall = document
        .get("Overall Result")
        .ok_or(shape("the document", "`Overall Result`"))?;
    let overall = status(overall)?;
    let accounted = whole
        .results
        .iter()
        .any(|result| result.grade() > Grade::NotRun);
    if whole.runtime_error.is_none() && (lost.is_some() || overall != Status::Pass && !accounted) {
        let warning = document
            .get("Warning")
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        let which = lost.unwrap_or(iterations.len().saturating_sub(1)) + 1;
        whole.runtime_error = Some(format!(
            "iteration {which} left no document: {}",
            bounded(warning)
        ));
    }
    if whole.results.is_empty() && whole.runtime_error.is_none() {
        return Err(DcgmiError::NothingRan);
    }
    Ok(whole)
}

/// Versions, device ids and serial numbers, wherever the release has put them.
fn inventory(document: &Object, root: &Object) -> Result<Diagnosis, DcgmiError> {
    let empty = Object::new();
    let metadata = match document.get("metadata") {
        Some(metadata) => object(metadata, "metadata")?,
        None => &empty,
    };
    let first = |key: &str| {
        [metadata, document, root]
            .into_iter()
            .find_map(|place| place.get(key))
    };
    let mut diagnosis = Diagnosis {
        dcgm_version: first("version").and_then(word),
        driver_version: first("Driver Version Detected").and_then(word),
        has_inventory: ["GPU Device IDs", "entity_groups"]
            .iter()
            .any(|key| document.contains_key(*key)),
        ..Diagnosis::default()
    };
    if let Some(ids) = document.get("GPU Device IDs") {
        diagnosis.gpu_device_ids = present(ids, "GPU Device IDs")?.filter_map(word).collect();
    }
    if let Some(serials) = document.get("GPU Device Serials") {
        for (id, serial) in object(serials, "GPU Device Serials")? {
            if let Some(serial) = word(serial) {
                let id = gpu_of_text(id)?;
                diagnosis.gpus.insert(id);
                diagnosis.serials.insert(id, serial);
            }
        }
    }
    if let Some(groups) = document.get("entity_groups") {
        for group in present(groups, "entity_groups")? {
            read_entities(object(group, "an entity group")?, &mut diagnosis)?;
        }
    }
    Ok(diagnosis)
}

/// One of `entity_groups`, of which only the GPUs are kept.
fn read_entities(group: &Object, diagnosis: &mut Diagnosis) -> Result<(), DcgmiError> {
    if number(group.get("entity_group_id")) != Some(GROUP_GPU) {
        return Ok(());
    }
    let Some(entities) = group.get("entities") else {
        return Ok(());
    };
    for gpu in present(entities, "entities")? {
        let gpu = object(gpu, "an entity")?;
        let id = gpu
            .get("entity_id")
            .ok_or(shape("an entity", "`entity_id`"))?;
        let id = number(Some(id)).ok_or(shape("entity_id", "the number of a GPU"))?;
        let id = gpu_id(id)?;
        diagnosis.gpus.insert(id);
        diagnosis
            .gpu_device_ids
            .extend(gpu.get("device_id").and_then(word));
        if let Some(serial) = gpu.get("serial_num").and_then(word) {
            diagnosis.serials.insert(id, serial);
        }
    }
    Ok(())
}

fn read_category(category: &Object, diagnosis: &mut Diagnosis) -> Result<(), DcgmiError> {
    let name = category
        .get("category")
        .ok_or(shape("a category", "`category`"))?;
    let name = short(name, "category")?;
    let Some(tests) = category.get("tests") else {
        return Ok(());
    };
    for test in present(tests, "tests")? {
        read_test(&name, object(test, "a test")?, diagnosis)?;
        if diagnosis.results.len() > RESULTS_MAX {
            return Err(TOO_MANY);
        }
    }
    Ok(())
}

fn read_test(category: &str, test: &Object, diagnosis: &mut Diagnosis) -> Result<(), DcgmiError> {
    let printed = test.get("name").ok_or(shape("a test", "`name`"))?;
    let printed = short(printed, "name")?;
    let name = test_name(&printed);
    let is_row = category == "Deployment" && name != SOFTWARE;
    let blank = TestResult {
        test: if is_row { SOFTWARE.to_owned() } else { name },
        row: is_row.then(|| {
            if printed == "Blacklist" {
                "Denylist".to_owned()
            } else {
                printed
            }
        }),
        category: category.to_owned(),
        entity: Entity::Node,
        status: Status::NotRun,
        errors: Vec::new(),
        info: Vec::new(),
    };
    let mut results: Vec<TestResult> = Vec::new();
    if let Some(entries) = test.get("results") {
        for entry in present(entries, "results")? {
            read_result(&blank, object(entry, "a result")?, &mut results)?;
            if results.len() > RESULTS_MAX {
                return Err(TOO_MANY);
            }
        }
    }
    if is_row {
        // The row holds one `gpu_id`, that of its last error; with several errors it is not known of the others.
        for result in results.iter_mut().filter(|result| result.errors.len() > 1) {
            result.entity = Entity::Node;
        }
    }
    if let Some(summary) = test.get("test_summary") {
        read_summary(
            &blank,
            object(summary, "test_summary")?,
            &mut results,
            &mut diagnosis.remarks,
        )?;
    }
    if results.is_empty() {
        results.push(blank);
    }
    diagnosis
        .gpus
        .extend(results.iter().filter_map(|result| result.entity.gpu()));
    diagnosis.results.extend(results);
    Ok(())
}

/// One of `results`: of one entity, or, in the nvvs document inside the host engine, of a list of GPUs.
fn read_result(
    blank: &TestResult,
    entry: &Object,
    results: &mut Vec<TestResult>,
) -> Result<(), DcgmiError> {
    let errors = errors(entry)?;
    let info = texts(entry.get("info"), "info")?;
    let Some(printed) = entry.get("status") else {
        // A further error of the row before it (3.3.0, 3.3.1).
        let row = results.last_mut().ok_or(shape("a result", "`status`"))?;
        row.errors.extend(errors);
        row.info.extend(info);
        return Ok(());
    };
    let of = |entity| TestResult {
        entity,
        ..blank.clone()
    };
    let mut told = match entry.get("gpu_id").or(entry.get("gpu_ids")) {
        // A list of GPUs shares one result; what was found is not known of any one of them.
        Some(Value::String(list)) if list.contains(',') && errors.is_empty() && info.is_empty() => {
            list.split(',')
                .map(|id| Ok(of(Entity::Gpu(gpu_of_text(id)?))))
                .collect::<Result<Vec<_>, _>>()?
        }
        Some(Value::String(list)) if list.contains(',') => vec![of(Entity::Node)],
        gpu => vec![of(entity(entry, gpu)?)],
    };
    for result in &mut told {
        result.status = status(printed)?;
    }
    if let [result] = told.as_mut_slice() {
        result.errors = errors;
        result.info = info;
    }
    results.extend(told);
    Ok(())
}

/// `test_summary`: the errors that belong to no entity, since 4.5 all errors over again.
fn read_summary(
    blank: &TestResult,
    summary: &Object,
    results: &mut Vec<TestResult>,
    remarks: &mut Vec<String>,
) -> Result<(), DcgmiError> {
    let printed = summary
        .get("status")
        .ok_or(shape("test_summary", "`status`"))?;
    let status = status(printed)?;
    let mut counted: Vec<&DcgmError> = results.iter().flat_map(|result| &result.errors).collect();
    let mut errors = errors(summary)?;
    errors.retain(
        |error| match counted.iter().position(|known| *known == error) {
            Some(found) => {
                counted.swap_remove(found);
                false
            }
            None => true,
        },
    );
    remarks.extend(texts(summary.get("info"), "info")?);
    let told = results.iter().any(|result| result.status == status);
    if !errors.is_empty() || !told {
        results.push(TestResult {
            status,
            errors,
            ..blank.clone()
        });
    }
    Ok(())
}

/// What a result is about; `gpu` is what stands under the key for GPUs before 4.0.
fn entity(entry: &Object, gpu: Option<&Value>) -> Result<Entity, DcgmiError> {
    if let Some(cpu) = entry.get("cpu_id") {
        let id = cpu.as_str().and_then(|text| text.trim().parse().ok());
        let id = id.or_else(|| number(Some(cpu)));
        return Ok(Entity::Cpu(
            id.ok_or(shape("cpu_id", "the number of a CPU"))?,
        ));
    }
    if let Some(group) = entry.get("entity_group_id") {
        let group = number(Some(group)).ok_or(shape("entity_group_id", "the number of a group"))?;
        let id =
            number(entry.get("entity_id")).ok_or(shape("entity_id", "the number of an entity"));
        return Ok(match group {
            GROUP_NONE => Entity::Node,
            GROUP_GPU => Entity::Gpu(gpu_id(id?)?),
            GROUP_CPU => Entity::Cpu(id?),
            _ => Entity::Other { group, id: id? },
        });
    }
    match gpu {
        None => Ok(Entity::Node),
        Some(Value::String(id)) => gpu_of_text(id).map(Entity::Gpu),
        // -1 stands for "no GPU in particular".
        Some(id) if id.as_i64().is_some_and(|id| id < 0) || is_blank(id) => Ok(Entity::Node),
        Some(id) => {
            let id = number(Some(id)).ok_or(shape("gpu_id", "the number of a GPU"))?;
            gpu_id(id).map(Entity::Gpu)
        }
    }
}

/// `warnings` in each of its shapes.
fn errors(entry: &Object) -> Result<Vec<DcgmError>, DcgmiError> {
    match entry.get("warnings") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![error(entry, bounded(text))]),
        Some(Value::Array(warnings)) => warnings
            .iter()
            .filter(|warning| !warning.is_null())
            .map(|warning| match warning {
                Value::String(text) => Ok(DcgmError::new(None, None, None, bounded(text))),
                warning => {
                    let warning = object(warning, "a warning")?;
                    // 3.3.3 to 3.3.9 write `warnings` for `warning` in the rows of `Deployment`.
                    let text = warning.get("warning").or(warning.get("warnings"));
                    let text = text.ok_or(shape("a warning", "`warning`"))?;
                    Ok(error(warning, string(text, "warning")?))
                }
            })
            .collect(),
        Some(_) => Err(shape("warnings", "a text or a list")),
    }
}

/// The error whose numbers stand in `place`.
fn error(place: &Object, text: String) -> DcgmError {
    let stated = |key| number(place.get(key));
    DcgmError::new(
        stated("error_id"),
        stated("error_severity"),
        stated("error_category"),
        text,
    )
}

/// A text or a list of texts with holes.
fn texts(value: Option<&Value>, at: &'static str) -> Result<Vec<String>, DcgmiError> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(text @ Value::String(_)) => Ok(vec![string(text, at)?]),
        Some(list) => present(list, at)?.map(|text| string(text, at)).collect(),
    }
}

fn status(value: &Value) -> Result<Status, DcgmiError> {
    let printed = value.as_str().unwrap_or_default();
    let is = |word: &str| printed.eq_ignore_ascii_case(word);
    match () {
        () if is("Pass") => Ok(Status::Pass),
        () if is("Skip") => Ok(Status::Skip),
        () if is("Not Run") => Ok(Status::NotRun),
        () if is("Warn") => Ok(Status::Warn),
        () if is("Fail") => Ok(Status::Fail),
        () => Err(shape("status", "`Pass`, `Skip`, `Fail` or `Not Run`")),
    }
}

/// The name that release 4 has for the test of this displayed name.
fn test_name(printed: &str) -> String {
    let plain = super::plain(printed);
    match plain.as_str() {
        "gpu_memory" => "memory".to_owned(),
        "eud_test" => "eud".to_owned(),
        "cpu_eud_test" => "cpu_eud".to_owned(),
        _ => plain,
    }
}
