//! What has to be right before DCGM's diagnostic is started: it would run for minutes to hours and then say less clearly
//! what was in its way.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::Level;
use crate::check::{CheckError, Recorder, chain};
use crate::host::Host;

/// DCGM's daemon and the program that it starts for a diagnostic, as the kernel names them.
const HOST_ENGINE: &str = "nv-hostengine";
const DIAGNOSTIC: &str = "nvvs";

/// How long NVML may take: without persistence mode it wakes every GPU, which takes seconds for each.
const NVML_LIMIT: Duration = Duration::from_secs(60);

/// The GPUs that NVML counts, each with its serial number if it tells one.
pub(super) type Serials = Vec<Option<String>>;

/// Looks whether anything is in the way, and says what could not be looked at and what the run depends on. Returns the GPUs
/// that NVML knows.
///
/// # Errors
/// When the diagnostic would be refused, or would measure something else than idle GPUs.
pub(super) fn run(
    host: &Host,
    level: Level,
    record: &mut Recorder<'_>,
) -> Result<Option<Serials>, CheckError> {
    engine(host, record)?;
    let (serials, obstacles) = match obstacles_in_time(host, level) {
        Ok(answer) => answer,
        Err(why) => {
            record.note(format!(
                "could not ask beforehand whether the GPUs are free: {why}"
            ))?;
            return Ok(None);
        }
    };
    if obstacles.is_empty() {
        return Ok(Some(serials));
    }
    Err(CheckError::Unavailable(format!(
        "DCGM's diagnostic was not started: {}",
        obstacles.join("; ")
    )))
}

/// DCGM's own processes.
fn engine(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let Some(processes) = processes(host) else {
        return record.note(
            "could not look whether nv-hostengine or another diagnostic is running: /proc is unreadable",
        );
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

/// As [`obstacles`], which a stuck driver would keep for ever: it is asked in a thread of its own.
fn obstacles_in_time(host: &Host, level: Level) -> Result<(Serials, Vec<String>), String> {
    let (host, (answer, heard)) = (host.clone(), channel());
    thread::spawn(move || answer.send(obstacles(&host, level)));
    let late = |_| format!("NVML has not answered within {} s", NVML_LIMIT.as_secs());
    heard.recv_timeout(NVML_LIMIT).map_err(late)?
}

/// The GPUs and what of them stands in the way, or why they could not be asked. A GPU that does not answer is not in the way:
/// what DCGM says of it is worth hearing.
fn obstacles(host: &Host, level: Level) -> Result<(Serials, Vec<String>), String> {
    let nvml = host.nvml().map_err(|error| chain(&error))?;
    let count = nvml.device_count().map_err(|error| error.to_string())?;
    let mut serials = Vec::new();
    let mut obstacles = Vec::new();
    for index in 0..count {
        let gpu = nvml.device_by_index(index);
        serials.push(gpu.as_ref().ok().and_then(|gpu| gpu.serial().ok()));
        let Ok(gpu) = gpu else {
            continue;
        };
        if gpu.mig_mode().is_ok_and(|mode| mode.current != 0) {
            // nvvs refuses such a GPU (NVIDIA/DCGM, nvvs/src/NvidiaValidationSuite.cpp).
            obstacles.push(format!(
                "gpu{index} is divided by MIG, and the diagnostic needs whole GPUs (nvidia-smi -i {index} -mig 0 undoes it)"
            ));
        }
        // Level 1 looks at software and configuration alone; the others need the GPU's memory and speed for themselves.
        let users = if level.number() > 1 {
            gpu.running_compute_processes().unwrap_or_default()
        } else {
            Vec::new()
        };
        for user in users {
            let name = host.text(format!("/proc/{}/comm", user.pid));
            let name = name.unwrap_or_else(|_| "name unknown".to_owned());
            if name != HOST_ENGINE {
                obstacles.push(format!(
                    "process {} ({}) computes on gpu{index}; end it, or drain the node first",
                    user.pid,
                    name.escape_debug()
                ));
            }
        }
    }
    Ok((serials, obstacles))
}

/// Number and name of every process; those that end while they are looked at are left out.
fn processes(host: &Host) -> Option<Vec<(u32, String)>> {
    let entries = host.list("/proc").ok()?;
    let ids = entries.iter().filter_map(|entry| entry.parse::<u32>().ok());
    let named = ids.filter_map(|id| Some((id, host.text(format!("/proc/{id}/comm")).ok()?)));
    Some(named.collect())
}
