//! `--set`: what an option cannot be is refused before anything starts, whether its check would run or not.
#![expect(clippy::unwrap_used, reason = "a test may stop anywhere")]

mod common;

use common::Dhc;
use dhc_checks::catalog::CHECKS;
use dhc_checks::check::{Check, OptionSpec, Values};
use dhc_fixtures::FakeNode;

/// What dhc says of this setting, given a check that has nothing to do with it.
fn refusal(setting: &str) -> String {
    let dhc = Dhc::on(FakeNode::plain());
    let mut command = dhc.command("run", &["--check", "host", "--set", setting]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{setting}: {said}");
    assert!(output.stdout.is_empty(), "{setting}");
    assert!(!dhc.state().exists(), "{setting} left something");
    said
}

fn options() -> impl Iterator<Item = (Check, &'static OptionSpec)> {
    let options = |check: &Check| {
        let check = *check;
        let options = check.spec().options.iter();
        options.map(move |option| (check, option))
    };
    CHECKS.iter().flat_map(options)
}

#[test]
fn every_option_of_every_check_says_what_it_takes() {
    assert!(options().count() > 20);
    for (check, option) in options() {
        let name = format!("{}.{}", check.spec().name, option.name);
        let said = refusal(&format!("{name}=no\u{7}such"));
        let wanted = format!(
            "option `{}` of `{}` cannot be `no\\u{{7}}such`: write {}",
            option.name,
            check.spec().name,
            option.values
        );
        assert!(said.contains(&wanted), "{name}: {said}");
    }
}

#[test]
fn what_is_just_out_of_range_is_refused_and_what_is_just_within_is_not() {
    for (check, option) in options() {
        let name = (check.spec().name, option.name);
        let accepts = |value: u64| option.accept("it", &value.to_string()).is_ok();
        let Values::Number(range) = &option.values else {
            continue;
        };
        let (from, to) = (*range.start(), *range.end());
        assert!(accepts(from) && accepts(to), "{name:?}");
        assert!(!accepts(from - 1) && !accepts(to + 1), "{name:?}");
        let default = option.default.parse();
        let is_sound = option.default.is_empty() || default.is_ok_and(|by| range.contains(&by));
        assert!(is_sound, "{name:?}");
    }
}

#[test]
fn typing_mistakes_are_told_with_what_to_write() {
    for (setting, words) in [
        ("dcgm-diag.level=9", "write a whole number from 1 to 4"),
        ("dcgm-diag.level=", "write a whole number from 1 to 4"),
        ("dcgm-diag.level=+2", "write a whole number from 1 to 4"),
        ("cpu-stress.seconds=0", "from 1 to 86400"),
        ("cpu-stress.seconds=99999999999999999999", "from 1 to 86400"),
        ("memory-stress.percent=91", "from 1 to 90"),
        ("memory-stress.percent=-1", "from 1 to 90"),
        ("disk-stress.directories=relative", "at most 64 whole paths"),
        ("disk-stress.directories=/tmp:", "at most 64 whole paths"),
        ("disk-stress.mib=0", "from 1 to 1048576"),
        (
            "gpu-stress.size=100",
            "write a multiple of 64, at most 32768",
        ),
        (
            "gpu-training.python=bin/python3",
            "the whole path of a program",
        ),
        ("gpu-training.python=-c", "the whole path of a program"),
        ("nccom-local.max-bytes=1TB", "a size such as 64MB or 1GB"),
        ("fabric-loopback.provider=tcp udp", "a provider's name"),
        (
            "nccl-allreduce.engine=magic",
            "write ranks or all_reduce_perf",
        ),
        ("nccl-allreduce.library-path=lib", "at most 16 whole paths"),
        ("nccl-allreduce.libnccl=libnccl.so.2", "write a whole path"),
        ("dcgm-diag.levels=2", "has no option `levels`; it has level"),
        ("dcgm.level=2", "there is no check `dcgm`"),
        ("dcgm-diag=2", "write CHECK.OPTION=VALUE"),
    ] {
        let said = refusal(setting);
        assert!(said.contains(words), "{setting}: {said}");
    }
}
