//! Generated fleets with devices that are slow on purpose, and how many of them learned bounds and peers find.

use std::collections::BTreeMap;

use dhc_thresholds::{
    Better, CheckReport, Ending, Identity, JudgedBy, Kind, Metric, NodeReport, PEERS, Record,
    Report, Role, Run, Sample, Status, Subject, Table, Terms, Unit, compare, learn,
};

/// What the devices of generated fleets are measured by.
pub(crate) const SPEED: Metric = Metric {
    name: "nic.speed",
    unit: Unit::GigabytesPerSecond,
    about: "how fast the card is",
    role: Role::Judged,
    fault: "nic.performance",
};

/// All metrics of generated fleets.
pub(crate) fn metrics(_check: &str) -> Vec<&'static Metric> {
    vec![&SPEED]
}

/// A floor far below everything, so that peers alone decide.
const TABLE: &str = r#"
schema = "dhc.thresholds/1"
instance_type = "generated"
[[limit]]
metric = "nic.speed"
unit = "GB/s"
fail_below = 1
source = "this simulation"
"#;

/// Devices of a node.
pub(crate) const DEVICES: usize = 8;

/// One device in so many is slow.
pub(crate) const SLOW_ONE_IN: usize = 64;

/// Chance that always falls the same way (SplitMix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// Evenly from 0 to 1, never 0.
    pub(crate) fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 + f64::EPSILON
    }

    /// Of the standard normal distribution (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.even().min(1.0).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.even()).cos()
    }

    /// Of Student's t distribution with three degrees of freedom: tails as heavy as those of a busy machine.
    pub(crate) fn heavy(&mut self) -> f64 {
        let squares: f64 = (0..3).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / 3.0).sqrt()
    }
}

/// A fleet to generate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    /// How many nodes.
    pub(crate) nodes: usize,
    /// The spread of sound devices from run to run and among each other, as a share of the speed.
    pub(crate) spread: f64,
    /// Whether the variation has heavy tails.
    pub(crate) heavy: bool,
    /// By what share the slow devices are slower; nothing is slow where it is 0.
    pub(crate) slow: f64,
    /// Where chance begins.
    pub(crate) seed: u64,
}

impl Fleet {
    /// Whether the device with this number is slow.
    pub(crate) fn is_slow(&self, number: usize) -> bool {
        self.slow > 0.0 && number % SLOW_ONE_IN == SLOW_ONE_IN / 2 + 3
    }

    /// What each device shows in each of so many runs.
    pub(crate) fn values(&self, runs: usize) -> Vec<Vec<f64>> {
        let mut chance = Chance(self.seed);
        let mut vary = || {
            if self.heavy {
                chance.heavy()
            } else {
                chance.normal()
            }
        };
        // Half of the variance is the device's own, half is that of the run.
        let part = self.spread * std::f64::consts::FRAC_1_SQRT_2;
        let devices = self.nodes * DEVICES;
        let own: Vec<f64> = (0..devices)
            .map(|number| {
                let slow = if self.is_slow(number) { self.slow } else { 0.0 };
                100.0 * (1.0 - slow) * (1.0 + part * vary())
            })
            .collect();
        let run = |_| {
            own.iter()
                .map(|speed| (speed * (1.0 + part * vary())).max(2.0))
                .collect()
        };
        (0..runs).map(run).collect()
    }

    /// The results of so many runs.
    pub(crate) fn results(&self, runs: usize) -> Vec<Report> {
        let table = Table::parse(TABLE, "simulation", &[&SPEED], &|_| None).unwrap();
        let values = self.values(runs);
        let result =
            |(number, values): (usize, &Vec<f64>)| report(&format!("run{number}"), &table, values);
        values.iter().enumerate().map(result).collect()
    }

    /// What peers say of the fleet after so many runs.
    pub(crate) fn compared(&self, runs: usize) -> Found {
        let (nodes, _) = compare(&self.results(runs), &metrics);
        let mut found = Found::default();
        let mut accused: BTreeMap<usize, Status> = BTreeMap::new();
        for (place, node) in nodes.iter().enumerate() {
            for finding in &node.checks[0].findings {
                if finding
                    .bound
                    .as_ref()
                    .is_some_and(|bound| bound.origin == PEERS)
                {
                    let device: usize = finding
                        .subject
                        .name
                        .trim_start_matches("nic")
                        .parse()
                        .unwrap();
                    accused.insert(place * DEVICES + device, finding.status);
                }
            }
        }
        for number in 0..self.nodes * DEVICES {
            let status = accused.get(&number).copied().unwrap_or(Status::Pass);
            found.count(self.is_slow(number), status);
        }
        found
    }

    /// What a bound that was learned from a healthy fleet like it says of one run.
    pub(crate) fn against_learned(&self, teachers: usize) -> Found {
        let healthy = Fleet {
            nodes: teachers,
            slow: 0.0,
            seed: self.seed ^ 0xABCD_EF01,
            ..*self
        };
        let samples = samples(&healthy.values(1)[0]);
        let terms = Terms {
            coverage: 0.999,
            minimum: false,
        };
        let learned = learn(&samples, Better::Higher, terms).unwrap();
        let mut found = Found::default();
        for (number, value) in self.values(1)[0].iter().enumerate() {
            let status = if *value < learned.bound {
                Status::Warn
            } else {
                Status::Pass
            };
            found.count(self.is_slow(number), status);
        }
        found
    }
}

/// Values as one sample of a device each.
pub(crate) fn samples(values: &[f64]) -> Vec<Sample> {
    let sample = |(number, value): (usize, &f64)| Sample {
        of: format!("device {number}"),
        value: *value,
    };
    values.iter().enumerate().map(sample).collect()
}

/// A result with the speeds of eight devices a node.
pub(crate) fn report(id: &str, table: &Table, values: &[f64]) -> Report {
    let node = |(place, speeds): (usize, &[f64])| {
        let mut record = Record::new("nic-test", Ending::Finished);
        let card = |(number, speed): (usize, &f64)| {
            SPEED.of(Subject::new(Kind::Nic, format!("nic{number}")), *speed)
        };
        record.measurements = speeds.iter().enumerate().map(card).collect();
        let identity = Identity {
            instance_id: Some(format!("i-{place:08}")),
            instance_type: Some("generated".to_owned()),
            boot_id: Some(format!("boot-{place}")),
            ..Identity::default()
        };
        let check = CheckReport::new(record, &[&SPEED], table);
        NodeReport::new(format!("node{place:05}"), identity, vec![check])
    };
    let run = Run {
        id: id.to_owned(),
        dhc: "0".to_owned(),
        level: "instance".to_owned(),
        started_at: "2026-11-01T00:00:00Z".to_owned(),
        duration_ms: 0,
        expires_at: "2026-11-02T00:00:00Z".to_owned(),
        environment: BTreeMap::new(),
        options: Some(BTreeMap::new()),
    };
    let judged_by = JudgedBy {
        dhc: "0".to_owned(),
        instance_type: table.instance_type.clone(),
        origin: "simulation".to_owned(),
        sha256: String::new(),
        faults: String::new(),
    };
    Report::new(
        run,
        judged_by,
        values.chunks(DEVICES).enumerate().map(node).collect(),
    )
}

/// How many devices were found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// Slow devices.
    pub(crate) slow: usize,
    /// Those that were at least warned of.
    pub(crate) warned: usize,
    /// Those that failed.
    pub(crate) failed: usize,
    /// Sound devices.
    pub(crate) sound: usize,
    /// Those that were warned of or failed all the same.
    pub(crate) falsely_warned: usize,
    /// Those that failed all the same.
    pub(crate) falsely_failed: usize,
}

impl Found {
    fn count(&mut self, slow: bool, status: Status) {
        let (warned, failed) = (status >= Status::Warn, status == Status::Fail);
        if slow {
            self.slow += 1;
            self.warned += usize::from(warned);
            self.failed += usize::from(failed);
        } else {
            self.sound += 1;
            self.falsely_warned += usize::from(warned);
            self.falsely_failed += usize::from(failed);
        }
    }

    /// Both together.
    pub(crate) fn and(self, other: Found) -> Found {
        Found {
            slow: self.slow + other.slow,
            warned: self.warned + other.warned,
            failed: self.failed + other.failed,
            sound: self.sound + other.sound,
            falsely_warned: self.falsely_warned + other.falsely_warned,
            falsely_failed: self.falsely_failed + other.falsely_failed,
        }
    }
}

/// A share in percent.
pub(crate) fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

/// So many fleets that differ by chance alone, counted together: after one run, after three, and against a learned bound.
pub(crate) fn many(fleet: Fleet, fleets: u64) -> (Found, Found, Found) {
    let empty = || (Found::default(), Found::default(), Found::default());
    (0..fleets).fold(empty(), |(once, thrice, learned), number| {
        let fleet = Fleet {
            seed: fleet.seed.wrapping_mul(1_000).wrapping_add(number),
            ..fleet
        };
        (
            once.and(fleet.compared(1)),
            thrice.and(fleet.compared(3)),
            learned.and(fleet.against_learned(48)),
        )
    })
}
