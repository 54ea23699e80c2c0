//! What has to be right before DCGM's diagnostic is started: it would run for minutes to hours and then say less clearly
//! what is in its way.

use crate::check::{CheckError, Recorder};
use crate::host::Host;

/// DCGM's daemon and the program that it starts for a diagnostic, as the kernel names them.
const HOST_ENGINE: &str = "nv-hostengine";
const DIAGNOSTIC: &str = "nvvs";

/// Looks whether anything is in the way, and says what the run depends on.
///
/// # Errors
/// When the diagnostic could not run, or would measure something else than idle GPUs.
pub(super) fn run(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let Some(processes) = processes(host) else {
        return record.note("could not look whether nv-hostengine or another diagnostic is running: /proc is unreadable");
    };
    let running = |wanted: &str| processes.iter().find(|(_, name)| name == wanted);
    if let Some((id, _)) = running(DIAGNOSTIC) {
        return Err(CheckError::Unavailable(format!(
            "another diagnostic of DCGM is running (nvvs, process {id}); wait for it to end, or end it"
        )));
    }
    if running(HOST_ENGINE).is_none() {
        record.note(
            "no nv-hostengine is running: dcgmi runs the diagnostic in an engine of its own",
        )?;
    }
    Ok(())
}

/// Number and name of every process; those that end while they are looked at are left out.
fn processes(host: &Host) -> Option<Vec<(u32, String)>> {
    let entries = host.list("/proc").ok()?;
    let ids = entries.iter().filter_map(|entry| entry.parse::<u32>().ok());
    let named = ids.filter_map(|id| Some((id, host.text(format!("/proc/{id}/comm")).ok()?)));
    Some(named.collect())
}
