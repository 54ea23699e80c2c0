//! What to run and what to leave out, with the reason for each. Pure.
//!
//! On a known instance type the table decides what must be there, never a probe: a GPU check on a GPU type runs even
//! if no GPU answers, since that is the fault it looks for. On an unknown type the plan follows what is there.

use std::collections::BTreeSet;

use dhc_checks::check::{Check, ClusterCheck, InstanceCheck, Spec};
use dhc_thresholds::{Hardware, Table};

/// Which checks the user wants.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these, by name; all if empty.
    pub checks: Vec<String>,
    /// Only those with one of these tags; all if empty.
    pub tags: Vec<String>,
    /// None of these, by name or tag.
    pub skip: Vec<String>,
}

/// A check and what becomes of it.
#[derive(Clone)]
pub struct Planned {
    /// The check.
    pub check: &'static dyn InstanceCheck,
    /// Why it is left out, or `None` if it runs.
    pub left_out: Option<String>,
}

/// A word in the selection that is neither a check nor a tag.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no check or tag `{word}`; there are the checks {checks} and the tags {tags}")]
pub struct UnknownWord {
    word: String,
    checks: String,
    tags: String,
}

/// Those of the checks that are of one node alone.
pub fn instance_checks(checks: &[Check]) -> Vec<&'static dyn InstanceCheck> {
    checks.iter().filter_map(|check| check.instance()).collect()
}

/// Plans the instance level: every check of `checks`, each to be run or left out.
///
/// `there` is the hardware that was found, which matters only where `table` knows no instance type.
///
/// # Errors
/// When the selection names something that does not exist: a typing mistake must not leave a check out silently.
pub fn instance_level(
    checks: &[&'static dyn InstanceCheck],
    table: &Table,
    there: &BTreeSet<Hardware>,
    selection: &Selection,
) -> Result<Vec<Planned>, UnknownWord> {
    let specs: Vec<&'static Spec> = checks.iter().map(|check| check.spec()).collect();
    known(&specs, selection)?;
    let plan = checks.iter().map(|check| Planned {
        check: *check,
        left_out: unwanted(check.spec(), selection).or_else(|| absent(check.spec(), table, there)),
    });
    Ok(plan.collect())
}

/// Plans the cluster level: the collectives that the table's hardware allows and the user did not leave out.
///
/// # Errors
/// As [`instance_level`].
pub fn cluster_level(
    checks: &[Check],
    table: &Table,
    selection: &Selection,
) -> Result<Vec<&'static dyn ClusterCheck>, UnknownWord> {
    let collectives: Vec<&'static dyn ClusterCheck> = checks
        .iter()
        .filter_map(|check| check.cluster())
        .filter(|check| check.plateau().is_some())
        .collect();
    let specs: Vec<&'static Spec> = collectives.iter().map(|check| check.spec()).collect();
    known(&specs, selection)?;
    let wanted = |check: &&'static dyn ClusterCheck| {
        let spec = check.spec();
        unwanted(spec, selection).is_none() && absent(spec, table, &BTreeSet::new()).is_none()
    };
    Ok(collectives.into_iter().filter(wanted).collect())
}

fn known(specs: &[&'static Spec], selection: &Selection) -> Result<(), UnknownWord> {
    let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name).collect();
    let tags: BTreeSet<&str> = specs.iter().flat_map(|spec| spec.tags).copied().collect();
    let wrong = |word: &String, in_names: bool, in_tags: bool| {
        !(in_names && names.contains(word.as_str()) || in_tags && tags.contains(word.as_str()))
    };
    let wrong_word = selection
        .checks
        .iter()
        .find(|word| wrong(word, true, false))
        .or_else(|| selection.tags.iter().find(|word| wrong(word, false, true)))
        .or_else(|| selection.skip.iter().find(|word| wrong(word, true, true)));
    let Some(word) = wrong_word else {
        return Ok(());
    };
    let list = |words: &BTreeSet<&str>| words.iter().copied().collect::<Vec<_>>().join(", ");
    Err(UnknownWord {
        word: word.clone(),
        checks: list(&names),
        tags: list(&tags),
    })
}

fn unwanted(spec: &Spec, selection: &Selection) -> Option<String> {
    if let Some(word) = selection
        .skip
        .iter()
        .find(|word| *word == spec.name || spec.tags.contains(&word.as_str()))
    {
        return Some(format!("left out by --skip {word}"));
    }
    if !selection.checks.is_empty() && !selection.checks.iter().any(|name| name == spec.name) {
        return Some("not among the checks asked for with --check".to_owned());
    }
    if !selection.tags.is_empty()
        && !selection
            .tags
            .iter()
            .any(|tag| spec.tags.contains(&tag.as_str()))
    {
        return Some(format!(
            "has none of the tags asked for: {}",
            selection.tags.join(", ")
        ));
    }
    None
}

fn absent(spec: &Spec, table: &Table, there: &BTreeSet<Hardware>) -> Option<String> {
    let needed = spec.needs?;
    if table.is_generic() {
        return (!there.contains(&needed)).then(|| {
            format!(
                "no {} found and the instance type is not known; name it with --instance-type to have them expected",
                needed.plural()
            )
        });
    }
    match table.due(needed) {
        Some(0) => Some(format!(
            "{} has no {}",
            table.instance_type,
            needed.plural()
        )),
        Some(_) => None,
        None => (!there.contains(&needed)).then(|| {
            format!(
                "no {} found, and the table of {} does not say whether there should be",
                needed.plural(),
                table.instance_type
            )
        }),
    }
}
