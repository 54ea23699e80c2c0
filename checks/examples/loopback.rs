//! Prints the loopback's latency and bandwidth of a provider, to compare it with `fi_pingpong` and fabtests:
//! `cargo run --release --package dhc-checks --example loopback tcp 8,65536 65536,1048576`.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Duration;

use dhc_checks::loopback::{self, Course, NO_SHORTCUTS};
use libfabric_sys::Library;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let provider = arguments.next().unwrap_or_else(|| "tcp".to_owned());
    let sizes =
        |text: Option<String>, default: &str| -> Result<Vec<usize>, std::num::ParseIntError> {
            text.unwrap_or_else(|| default.to_owned())
                .split(',')
                .map(str::parse)
                .collect()
        };
    let course = Course {
        latency_bytes: sizes(arguments.next(), "8,1024,65536,1048576")?,
        round_trips: 1000,
        bandwidth_bytes: sizes(arguments.next(), "4096,65536,1048576")?,
        windows: 100,
        deadline: Duration::from_secs(120),
        silence: Duration::from_secs(3),
    };
    let library = Library::load(None, NO_SHORTCUTS)?;
    let devices = library.devices(Some(&provider))?;
    let device = devices
        .iter()
        .find(|device| device.domain == "lo")
        .or(devices.first());
    let device = device.ok_or("the provider has no device")?;
    println!("{device:?}");
    let results = loopback::measure(device, &course, &mut |_| {})?;
    for (bytes, us) in &results.latency_us {
        let of = |share| us.percentile(share).unwrap_or(f64::NAN);
        let mean = us.mean().unwrap_or(f64::NAN);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = *bytes as f64 / mean;
        println!(
            "{bytes:>8} B  mean {mean:.2} us  p50 {:.2}  p99 {:.2}  ping-pong {rate:.1} MB/s",
            of(0.5),
            of(0.99)
        );
    }
    for (bytes, rate) in &results.bandwidth {
        let (mean, max) = (
            rate.mean().unwrap_or(f64::NAN) / 1e6,
            rate.max().unwrap_or(f64::NAN) / 1e6,
        );
        println!("{bytes:>8} B  windows: mean {mean:.1} MB/s  max {max:.1} MB/s");
    }
    println!(
        "{} bytes checked, {} messages corrupted",
        results.bytes_checked, results.messages_corrupted
    );
    Ok(())
}
