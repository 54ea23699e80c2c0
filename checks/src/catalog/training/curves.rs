//! What the training script prints, as curves that can be compared.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The most cores that one node has, with room.
const CORES_MAX: usize = 1_024;

/// One line of the script.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Missing {
        module: String,
        why: String,
    },
    Found {
        jax: String,
        cores: Vec<Core>,
    },
    Reference {
        dtype: String,
        bits: Vec<u32>,
    },
    Losses {
        dtype: String,
        cores: Vec<u32>,
        bits: Vec<u32>,
    },
    Timed {
        dtype: String,
        seconds: f64,
    },
    Done,
}

/// A core, as JAX calls it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Core {
    /// Its number on this node.
    pub(super) id: u32,
    /// What it is.
    pub(super) kind: String,
}

/// What the script found and did.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// JAX's version.
    pub(super) jax: String,
    /// The cores that it trained on.
    pub(super) cores: Vec<Core>,
    /// The runs, by the type of their numbers.
    pub(super) runs: BTreeMap<String, Run>,
}

/// The runs with one type of numbers.
#[derive(Debug, Default)]
pub(super) struct Run {
    reference: Vec<u32>,
    curves: Vec<(Vec<u32>, Vec<u32>)>,
    /// How long the cores took together.
    pub(super) seconds: f64,
}

/// Why there is nothing to compare.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    /// JAX, or its support of the accelerator, is not there.
    #[error("JAX cannot use it: `{module}` is missing or not usable ({why})")]
    Missing { module: String, why: String },
    /// The script did not come to its end, or says what cannot be.
    #[error("{0}")]
    NotUnderstood(String),
}

/// Reads all that the script printed. Lines that are not its own (libraries print, too) are passed over.
pub(super) fn read(text: &str) -> Result<Told, Why> {
    let not_understood = |why: &str| Why::NotUnderstood(why.to_owned());
    let mut told = Told::default();
    let mut done = false;
    for line in text
        .lines()
        .filter(|line| line.starts_with(r#"{"event": ""#))
    {
        let line = serde_json::from_str(line)
            .map_err(|error| not_understood(&format!("a line cannot be read: {error}")))?;
        match line {
            Line::Missing { module, why } => return Err(Why::Missing { module, why }),
            Line::Found { jax, cores } => (told.jax, told.cores) = (jax, cores),
            Line::Reference { dtype, bits } => run(&mut told, dtype).reference = bits,
            Line::Losses { dtype, cores, bits } => run(&mut told, dtype).curves.push((cores, bits)),
            Line::Timed { dtype, seconds } => run(&mut told, dtype).seconds = seconds,
            Line::Done => done = true,
        }
    }
    if !done {
        return Err(not_understood("it did not come to its end"));
    }
    if told.cores.is_empty() || told.cores.len() > CORES_MAX || told.runs.is_empty() {
        return Err(not_understood("it trained on no core"));
    }
    let mut due: Vec<u32> = told.cores.iter().map(|core| core.id).collect();
    due.sort_unstable();
    for run in told.runs.values() {
        let mut ran: Vec<u32> = run
            .curves
            .iter()
            .flat_map(|curve| curve.0.clone())
            .collect();
        ran.sort_unstable();
        let whole = |bits: &[u32]| bits.len() == run.reference.len();
        if ran != due || run.reference.is_empty() || !run.curves.iter().all(|curve| whole(&curve.1))
        {
            return Err(not_understood("the curve of a core is missing or cut off"));
        }
    }
    Ok(told)
}

fn run(told: &mut Told, dtype: String) -> &mut Run {
    told.runs.entry(dtype).or_default()
}

impl Run {
    /// The greatest difference of a core's losses from the reference, in percent of it; infinite where a loss is no number.
    pub(super) fn deviation_percent(&self, core: u32) -> f64 {
        let value = |bits: &u32| f64::from(f32::from_bits(*bits));
        let apart = self
            .curve(core)
            .iter()
            .zip(&self.reference)
            .map(|(is, due)| {
                let apart =
                    (value(is) - value(due)).abs() / value(due).abs().max(f64::MIN_POSITIVE);
                if apart.is_nan() { f64::INFINITY } else { apart }
            });
        apart.fold(0.0, f64::max) * 100.0
    }

    /// The steps of which a core's loss differs in any bit from what more than half of the cores have; `None` where no
    /// curve has so many.
    pub(super) fn disagreeing_steps(&self, core: u32) -> Option<usize> {
        let all: usize = self.curves.iter().map(|curve| curve.0.len()).sum();
        let most = self.curves.iter().max_by_key(|curve| curve.0.len())?;
        let differs = |(is, due): (&u32, &u32)| usize::from(is != due);
        (2 * most.0.len() > all).then(|| self.curve(core).iter().zip(&most.1).map(differs).sum())
    }

    fn curve(&self, core: u32) -> &[u32] {
        let found = self.curves.iter().find(|curve| curve.0.contains(&core));
        found.map_or(&[], |curve| &curve.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(curves: &[(&[u32], [f32; 3])]) -> String {
        let bits = |losses: &[f32; 3]| losses.map(f32::to_bits);
        let ids: Vec<u32> = curves.iter().flat_map(|curve| curve.0.to_vec()).collect();
        let cores: Vec<String> = ids
            .iter()
            .map(|id| format!(r#"{{"id": {id}, "kind": "core"}}"#))
            .collect();
        let mut text = format!(
            "{{\"event\": \"found\", \"jax\": \"0.6\", \"cores\": [{}]}}\nnoise\n",
            cores.join(",")
        );
        text += &format!(
            "{{\"event\": \"reference\", \"dtype\": \"float32\", \"bits\": {:?}}}\n",
            bits(&[1.0, 0.5, 0.25])
        );
        for (ids, losses) in curves {
            text += &format!(
                "{{\"event\": \"losses\", \"dtype\": \"float32\", \"cores\": {ids:?}, \"bits\": {:?}}}\n",
                bits(losses)
            );
        }
        text + "{\"event\": \"done\"}\n"
    }

    #[test]
    fn a_core_is_held_against_the_reference_and_the_others() {
        let text = told(&[(&[0, 1, 3], [1.0, 0.5, 0.25]), (&[2], [1.0, 0.5, 0.375])]);
        let told = read(&text).unwrap();
        let run = &told.runs["float32"];
        assert_eq!(run.deviation_percent(1), 0.0);
        assert_eq!(run.deviation_percent(2), 50.0);
        assert_eq!(
            [0, 1, 2, 3].map(|core| run.disagreeing_steps(core)),
            [Some(0), Some(0), Some(1), Some(0)]
        );
    }

    #[test]
    fn a_loss_that_is_no_number_is_infinitely_far_off() {
        let told = read(&told(&[(&[0], [1.0, f32::NAN, 0.25])])).unwrap();
        assert_eq!(told.runs["float32"].deviation_percent(0), f64::INFINITY);
    }

    #[test]
    fn two_cores_that_differ_leave_open_which_one_is_wrong() {
        let text = told(&[(&[0], [1.0, 0.5, 0.25]), (&[1], [1.0, 0.5, 0.375])]);
        let run = &read(&text).unwrap().runs["float32"];
        assert_eq!(run.disagreeing_steps(0), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_is_refused() {
        let whole = told(&[(&[0, 1], [1.0, 0.5, 0.25]), (&[2], [1.0, 0.5, 0.375])]);
        let without_end = whole.trim_end().len();
        for end in 0..without_end {
            assert!(read(&whole[..end]).is_err(), "{}", &whole[..end]);
        }
        let lost = whole.replace("[0, 1]", "[0]");
        assert!(read(&lost).is_err());
    }
}
