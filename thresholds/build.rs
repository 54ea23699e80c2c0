#![expect(
    clippy::disallowed_methods,
    reason = "a build script talks to cargo this way"
)]
//! Compiles the threshold files of `instances/` in, so that a new instance type is one new file and nothing else.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder =
        Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("instances");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("thresholds/instances is part of the source")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    let mut code = String::from(
        "/// Name and text of every built-in table.\nconst INSTANCES: &[(&str, &str)] = &[\n",
    );
    for path in files {
        let name = path
            .file_stem()
            .expect("it has an ending")
            .to_string_lossy()
            .into_owned();
        writeln!(
            code,
            "    ({name:?}, include_str!({:?})),",
            path.display().to_string()
        )
        .expect("a string takes all");
    }
    code.push_str("];\n");
    fs::write(
        Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("instances.rs"),
        code,
    )
    .expect("OUT_DIR can be written");
}
