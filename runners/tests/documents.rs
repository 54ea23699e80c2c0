//! The commands in the documents: each of dhc's own is one that dhc understands, and each file of the repository that they
//! name is there. What the commands do is for the tests of what they do.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests read the documents and start the program"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

/// The lines of all blocks of shell commands in a document, comments left out.
fn commands(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(top().join(document)).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    let commands = lines.map(|line| line.split(" #").next().unwrap().trim().to_owned());
    commands
        .filter(|command| !command.is_empty() && !command.starts_with('#'))
        .collect()
}

/// The words after each `dhc` of a line, up to what the shell takes for itself.
fn arguments(line: &str) -> Vec<Vec<String>> {
    let line = line.replace(';', " ; ");
    let words: Vec<&str> = line.split_whitespace().collect();
    let starts = (0..words.len()).filter(|at| words[*at] == "dhc");
    let until = |word: &&&str| !matches!(**word, ";" | "&" | "&&" | "|") && !word.starts_with('>');
    starts
        .map(|at| words[at + 1..].iter().take_while(until))
        .map(|words| {
            words
                .map(|word| word.trim_matches('\'').to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn every_command_of_the_documents_is_one_that_dhc_understands() {
    let mut asked = 0;
    for document in [
        "README.md",
        "runners/EXPORT.md",
        "runners/HOSTS.md",
        "runners/KUBERNETES.md",
        "runners/RECOVERY.md",
        "runners/SLURM.md",
        "runners/deploy/README.md",
        "thresholds/LEARNING.md",
    ] {
        for line in commands(document) {
            for words in arguments(&line) {
                // The packages' commands end in the name: `dpkg --remove dhc`.
                if words.is_empty() || line.starts_with("dpkg") || line.starts_with("kubectl") {
                    continue;
                }
                // With `--help` at the end the words before it are read, and nothing is done.
                let mut dhc = Command::new(env!("CARGO_BIN_EXE_dhc"));
                let output = dhc.args(&words).arg("--help").output().unwrap();
                assert!(output.status.success(), "{document}: `{line}`: {output:?}");
                asked += 1;
            }
        }
    }
    assert!(asked > 60, "only {asked} commands were found");
}

#[test]
fn every_file_of_the_repository_that_a_command_names_is_there() {
    for document in [
        "README.md",
        "CONTRIBUTING.md",
        "runners/KUBERNETES.md",
        "runners/deploy/README.md",
    ] {
        for line in commands(document) {
            for word in line.split_whitespace() {
                if word.starts_with("runners/") || word.starts_with(".ci/") {
                    assert!(top().join(word).is_file(), "{document}: `{line}`");
                }
            }
        }
    }
}
