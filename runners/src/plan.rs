//! What to run and what to leave out, with the reason for each. Pure.
//!
//! On a known instance type the table decides what must be there, never a probe: a GPU check on a GPU type runs even
//! if no GPU answers, since that is the fault it looks for. On an unknown type the plan follows what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dhc_checks::check::{Check, ClusterCheck, InstanceCheck, Spec};
use dhc_thresholds::{Hardware, Table};

/// What the user set of checks: by check and option, the value.
pub type Options = BTreeMap<String, BTreeMap<String, String>>;

/// Which checks the user wants.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these, by name; all if empty.
    pub checks: Vec<String>,
    /// Only those with one of these tags; all if empty.
    pub tags: Vec<String>,
    /// None of these, by name or tag.
    pub skip: Vec<String>,
    /// What fits into so much time, see [`within`]; stress among it, since somebody who gives time wants it used.
    pub budget: Option<Duration>,
}

/// The tag of checks that load the whole machine. Nobody expects that of a plain `dhc run` on a node with jobs on it, so
/// they run only where they are asked for.
const STRESS: &str = "stress";

impl Selection {
    /// What of it is about these checks; `None` if the user wants none of them. With several levels a word names a check of
    /// any.
    pub fn among(&self, specs: &[&'static Spec]) -> Option<Selection> {
        let is_name = |word: &&String| specs.iter().any(|spec| spec.name == word.as_str());
        let is_tag = |word: &&String| specs.iter().any(|spec| spec.tags.contains(&word.as_str()));
        let those = |words: &[String], of: &dyn Fn(&&String) -> bool| {
            words.iter().filter(of).cloned().collect::<Vec<String>>()
        };
        let left = Selection {
            checks: those(&self.checks, &is_name),
            tags: those(&self.tags, &is_tag),
            skip: those(&self.skip, &|word| is_name(word) || is_tag(word)),
            budget: self.budget,
        };
        let none_left =
            |before: &[String], after: &[String]| !before.is_empty() && after.is_empty();
        let none = none_left(&self.checks, &left.checks) || none_left(&self.tags, &left.tags);
        (!none).then_some(left)
    }
}

/// A check and what becomes of it.
#[derive(Clone)]
pub struct Planned {
    /// The check.
    pub check: &'static dyn InstanceCheck,
    /// Why it is left out, or `None` if it runs.
    pub left_out: Option<LeftOut>,
    /// For how many seconds it works, where the budget has no time for its usual length.
    pub shortened: Option<Shortened>,
}

/// Why a check is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// In words.
    pub reason: String,
    /// The hardware for want of which it is, if that is why.
    pub lacks: Option<Hardware>,
}

impl From<String> for LeftOut {
    fn from(reason: String) -> Self {
        LeftOut {
            reason,
            lacks: None,
        }
    }
}

/// A check that is given less time than it usually takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortened {
    /// What its option `seconds` is set to.
    pub seconds: u64,
    /// What was shortened, and why.
    pub why: String,
}

impl Planned {
    /// What its options are set to, given what the user set (by check).
    pub fn options(&self, set: &Options) -> BTreeMap<String, String> {
        let name = self.check.spec().name;
        let mut options = set.get(name).cloned().unwrap_or_default();
        if let Some(shortened) = &self.shortened {
            options.insert(SECONDS.to_owned(), shortened.seconds.to_string());
        }
        options
    }
}

/// The option by which a check can be given less time.
const SECONDS: &str = "seconds";

/// The parts of its usual length to which a check is shortened. What is slow or wrong under load mostly shows early; below a
/// quarter heat has not come up and random places have hardly been visited.
const PARTS: [u64; 2] = [2, 4];

/// A word in the selection that is not what it should be: a check, a tag, or either.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {kind} `{word}`; {instead}")]
pub struct UnknownWord {
    kind: &'static str,
    word: String,
    /// What there is, or where the word fits.
    instead: String,
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
        left_out: unwanted(check.spec(), selection)
            .map(LeftOut::from)
            .or_else(|| absent(check.spec(), table, there)),
        shortened: None,
    });
    Ok(plan.collect())
}

/// Fits a plan into `budget`: what does not is given less time, or is left out, those checks first that find least in their
/// time.
///
/// A check costs what it takes on a sound node with these options (by check), one after the other. What the user set is not
/// shortened.
pub fn within(plan: Vec<Planned>, budget: Duration, options: &Options) -> Vec<Planned> {
    let mut best_first: Vec<(usize, f64)> = plan
        .iter()
        .enumerate()
        .filter(|(_, planned)| planned.left_out.is_none())
        .map(|(place, planned)| {
            let cost = planned.check.budget(&planned.options(options)).expected;
            let worth = f64::from(worth(planned.check));
            (place, worth / cost.as_secs_f64().max(0.001))
        })
        .collect();
    // Stable: of two that find as much, the one that the registry has first.
    best_first.sort_by(|(.., one), (.., other)| other.total_cmp(one));
    let mut left = budget;
    let mut plan = plan;
    for (place, _) in best_first {
        let planned = &mut plan[place];
        let lengths = lengths(planned, budget, options);
        if let Some((shortened, cost)) = lengths.iter().find(|(_, cost)| *cost <= left) {
            planned.shortened.clone_from(shortened);
            left -= *cost;
            continue;
        }
        let costs: Vec<String> = lengths.iter().map(|(_, cost)| spoken(*cost)).collect();
        let reason = format!(
            "left out to keep within the budget of {}: it takes about {}",
            spoken(budget),
            costs.join(", or shortened ")
        );
        planned.left_out = Some(LeftOut::from(reason));
    }
    plan
}

/// The lengths that a check can have, longest first, each with its cost.
fn lengths(
    planned: &Planned,
    budget: Duration,
    options: &Options,
) -> Vec<(Option<Shortened>, Duration)> {
    let check = planned.check;
    let set = planned.options(options);
    let mut lengths = vec![(None, check.budget(&set).expected)];
    let usual = check.spec().option(SECONDS);
    let usual = usual.and_then(|option| option.default.parse::<u64>().ok());
    if let Some(usual) = usual
        && !set.contains_key(SECONDS)
    {
        lengths.extend(PARTS.iter().map(|part| {
            let seconds = usual / part;
            let why = format!(
                "shortened to keep within the budget of {}: {}.{SECONDS} is {seconds} in place of {usual}",
                spoken(budget),
                check.spec().name
            );
            let mut set = set.clone();
            set.insert(SECONDS.to_owned(), seconds.to_string());
            (Some(Shortened { seconds, why }), check.budget(&set).expected)
        }));
    }
    lengths
}

/// What a check is worth when time is short: how many interruptions of a long training it could have foreseen. One that
/// foresees none has a place, and it is the last.
fn worth(check: &dyn InstanceCheck) -> u32 {
    let interruptions = check.foresees().iter().map(|cause| cause.interruptions());
    interruptions.sum::<u32>().max(1)
}

/// A time as the command line takes it, in one or two units: `1h30m`, `10m`, `45s`, `500ms`.
fn spoken(time: Duration) -> String {
    let parts = [
        (time.as_secs() / 3600, "h"),
        (time.as_secs() / 60 % 60, "m"),
        (time.as_secs() % 60, "s"),
        (u64::from(time.subsec_millis()), "ms"),
    ];
    let first = parts.iter().position(|(number, _)| *number > 0);
    let parts = &parts[first.unwrap_or(2)..];
    let parts = parts.iter().take(2).filter(|(number, _)| *number > 0);
    let text: String = parts
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
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
    let collectives = collectives(checks);
    let specs: Vec<&'static Spec> = collectives.iter().map(|check| check.spec()).collect();
    known(&specs, selection)?;
    let wanted = |check: &&'static dyn ClusterCheck| {
        let spec = check.spec();
        unwanted(spec, selection).is_none() && absent(spec, table, &BTreeSet::new()).is_none()
    };
    Ok(collectives.into_iter().filter(wanted).collect())
}

/// Plans all levels: what of `selection` is about the checks of a node, and what about the collectives.
///
/// # Errors
/// As [`instance_level`].
pub fn all_levels(
    checks: &[Check],
    selection: &Selection,
) -> Result<(Option<Selection>, Option<Selection>), UnknownWord> {
    let of_nodes: Vec<&'static Spec> = instance_checks(checks)
        .iter()
        .map(|check| check.spec())
        .collect();
    let of_groups: Vec<&'static Spec> = collectives(checks)
        .iter()
        .map(|check| check.spec())
        .collect();
    known(&[of_nodes.as_slice(), &of_groups].concat(), selection)?;
    Ok((selection.among(&of_nodes), selection.among(&of_groups)))
}

fn collectives(checks: &[Check]) -> Vec<&'static dyn ClusterCheck> {
    let collectives = checks.iter().filter_map(|check| check.cluster());
    collectives
        .filter(|check| check.plateau().is_some())
        .collect()
}

fn known(specs: &[&'static Spec], selection: &Selection) -> Result<(), UnknownWord> {
    let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name).collect();
    let tags: BTreeSet<&str> = specs.iter().flat_map(|spec| spec.tags).copied().collect();
    let (is_check, is_tag) = (
        |word: &&String| names.contains(word.as_str()),
        |word: &&String| tags.contains(word.as_str()),
    );
    let list = |words: &BTreeSet<&str>| words.iter().copied().collect::<Vec<_>>().join(", ");
    let (checks, tags) = (list(&names), list(&tags));
    let unknown = |kind, word: &String, instead| {
        Err(UnknownWord {
            kind,
            word: word.clone(),
            instead,
        })
    };
    if let Some(word) = selection.checks.iter().find(|word| !is_check(word)) {
        let instead = match is_tag(&word) {
            true => format!("it is a tag, so write --tag {word}"),
            false => format!("there are {checks}"),
        };
        return unknown("check", word, instead);
    }
    if let Some(word) = selection.tags.iter().find(|word| !is_tag(word)) {
        let instead = match is_check(&word) {
            true => format!("it is a check, so write --check {word}"),
            false => format!("there are {tags}"),
        };
        return unknown("tag", word, instead);
    }
    let neither = |word: &&String| !is_check(word) && !is_tag(word);
    if let Some(word) = selection.skip.iter().find(neither) {
        let instead = format!("there are the checks {checks} and the tags {tags}");
        return unknown("check or tag", word, instead);
    }
    Ok(())
}

/// Why the user does not want a check, if so.
pub(crate) fn unwanted(spec: &Spec, selection: &Selection) -> Option<String> {
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
    // Named ones have passed above; `--tag gpu` alone asks for no stress of GPUs.
    let asked_for = !selection.checks.is_empty() || selection.tags.iter().any(|tag| tag == STRESS);
    if spec.tags.contains(&STRESS) && !asked_for && selection.budget.is_none() {
        return Some(format!(
            "loads the whole machine, so it runs only when asked for: --tag {STRESS}, or --budget with time for it"
        ));
    }
    None
}

fn absent(spec: &Spec, table: &Table, there: &BTreeSet<Hardware>) -> Option<LeftOut> {
    let needed = spec.needs?;
    let (things, instance_type) = (needed.plural(), &table.instance_type);
    let reason = match table.due(needed) {
        Some(0) => format!("{instance_type} has no {things}"),
        Some(_) => return None,
        None if there.contains(&needed) => return None,
        None if table.is_generic() => format!(
            "no {things} found and the instance type is not known; name it with --instance-type to have them expected"
        ),
        None => format!(
            "no {things} found, and the table of {instance_type} does not say whether there should be"
        ),
    };
    Some(LeftOut {
        reason,
        lacks: Some(needed),
    })
}

#[cfg(test)]
mod tests {
    use dhc_checks::catalog::CHECKS;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_check_is_worth_the_interruptions_that_it_foresees_and_one_of_software_alone_the_least() {
        let checks = instance_checks(CHECKS);
        let worth = |name: &str| {
            let named = |check: &&&dyn InstanceCheck| check.spec().name == name;
            worth(
                *checks
                    .iter()
                    .find(named)
                    .expect("there is one of this name"),
            )
        };
        assert_eq!((worth("nvlink"), worth("gpu-memory")), (48, 72 + 19));
        assert_eq!(worth("fabric-loopback"), 1);
    }

    #[test]
    fn times_are_spoken_as_the_command_line_takes_them() {
        let spoken = |millis| spoken(Duration::from_millis(millis));
        assert_eq!(spoken(600_000), "10m");
        assert_eq!(spoken(5_400_000), "1h30m");
        assert_eq!(spoken(62_000), "1m2s");
        assert_eq!(
            (spoken(32_000), spoken(1_500)),
            ("32s".into(), "1s500ms".into())
        );
        assert_eq!((spoken(20), spoken(0)), ("20ms".into(), "0s".into()));
    }

    /// What it costs at the length that it was given.
    fn cost(planned: &Planned, options: &Options) -> Duration {
        planned.check.budget(&planned.options(options)).expected
    }

    /// What it costs at its shortest.
    fn least(planned: &Planned, options: &Options) -> Duration {
        let lengths = lengths(planned, Duration::ZERO, options);
        lengths.last().expect("every check has a length").1
    }

    proptest! {
        #[test]
        fn a_budget_is_never_exceeded_nor_wasted_and_what_is_left_out_is_named(
            seconds in 0..20_000_u64,
            stress in 1..5_000_u64,
            level in 1..=4_u64,
            left_out in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let budget = Duration::from_secs(seconds);
            let set = |option: &str, value: u64| {
                BTreeMap::from([(option.to_owned(), value.to_string())])
            };
            let options: Options = BTreeMap::from([
                ("cpu-stress".to_owned(), set("seconds", stress)),
                ("dcgm-diag".to_owned(), set("level", level)),
            ]);
            let before: Vec<Planned> = instance_checks(CHECKS)
                .into_iter()
                .zip(left_out)
                .map(|(check, out)| Planned {
                    check,
                    left_out: out.then(|| LeftOut::from("there is none".to_owned())),
                    shortened: None,
                })
                .collect();
            let after = within(before.clone(), budget, &options);
            let names = |plan: &[Planned]| -> Vec<&str> {
                plan.iter().map(|planned| planned.check.spec().name).collect()
            };
            prop_assert_eq!(names(&before), names(&after));
            let kept = after.iter().filter(|planned| planned.left_out.is_none());
            let used: Duration = kept.map(|planned| cost(planned, &options)).sum();
            prop_assert!(used <= budget);
            for (before, after) in before.iter().zip(&after) {
                match (&before.left_out, &after.left_out) {
                    (Some(before), after) => prop_assert_eq!(Some(before), after.as_ref()),
                    (None, None) => {
                        let Some(shortened) = &after.shortened else { continue };
                        // The rest of the budget would not have done for the whole of it, and the user set nothing.
                        prop_assert!(used - cost(after, &options) + cost(before, &options) > budget);
                        prop_assert_ne!(after.check.spec().name, "cpu-stress");
                        let usual = after.check.spec().option(SECONDS).expect("it can be shortened");
                        let usual: u64 = usual.default.parse().expect("it is a number");
                        prop_assert!(shortened.seconds >= usual / 4 && shortened.seconds < usual);
                    }
                    (None, Some(LeftOut { reason: why, .. })) => {
                        prop_assert!(why.contains("to keep within the budget of"), "{}", why);
                        // What is left of the time is too little for it.
                        prop_assert!(used + least(after, &options) > budget);
                    }
                }
            }
        }

        #[test]
        fn what_runs_found_more_in_its_time_than_what_was_left_out_for_it(seconds in 0..20_000_u64) {
            let none = Options::new();
            let all = instance_checks(CHECKS).into_iter();
            let all = all.map(|check| Planned { check, left_out: None, shortened: None });
            let all: Vec<Planned> = all.collect();
            let plan = within(all, Duration::from_secs(seconds), &none);
            let rate = |planned: &Planned| {
                let usual = planned.check.budget(&BTreeMap::new()).expected;
                f64::from(worth(planned.check)) / usual.as_secs_f64()
            };
            for out in plan.iter().filter(|planned| planned.left_out.is_some()) {
                // With only the checks that are better, there would have been no room for it either.
                let better = plan.iter().filter(|planned| planned.left_out.is_none() && rate(planned) >= rate(out));
                let used: Duration = better.map(|planned| cost(planned, &none)).sum();
                prop_assert!(used + least(out, &none) > Duration::from_secs(seconds));
            }
        }
    }
}
