//! `dhc thresholds learn`.

use dhc_runners::cli::LearnArgs;
use dhc_runners::render;
use dhc_runners::store;
use dhc_runners::{Exit, learn, tables};

use super::{Failure, print, print_document, stored};

/// Makes a threshold file from results.
pub(crate) fn learned(args: LearnArgs) -> Result<Exit, Failure> {
    if let Some(out) = args
        .out
        .as_ref()
        .filter(|out| out.symlink_metadata().is_ok())
    {
        return Err(format!(
            "`{}` is there already; earlier tables are worth keeping, so name another file, and see what changed with \
             `dhc thresholds diff`",
            out.display()
        )
        .into());
    }
    let mut results = Vec::new();
    for path in &args.results {
        results.push((path.display().to_string(), stored(path)?));
    }
    let base = args.extends.as_deref().map(tables::named).transpose()?;
    let terms = learn::Terms {
        bounds: dhc_thresholds::Terms {
            coverage: args.coverage / 100.0,
            minimum: args.minimum,
        },
        metrics: args.metrics,
        allow_lower: args.allow_lower,
        instance_type: args.instance_type,
        expired: args.expired,
        mixed_versions: args.mixed_versions,
        leave_out_unfit: args.leave_out_unfit,
    };
    let lesson = learn::from_results(results, base, &terms, jiff::Timestamp::now())?;
    for line in &lesson.said {
        eprintln!("dhc: {}", render::printable(line));
    }
    if lesson.limits == 0 {
        eprintln!("dhc: nothing was learned, so nothing is written");
        return Ok(Exit::Unknown);
    }
    match &args.out {
        Some(out) => {
            store::write_file(out, lesson.text.as_bytes())?;
            let limits = lesson.limits;
            print(&format!("{}: {limits} limits learned\n", out.display()))
        }
        None => print_document(&lesson.text),
    }
}
