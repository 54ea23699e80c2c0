//! Reads libfabric's headers. Nothing is linked: the library is found when the program runs.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script talks to cargo this way"
)]

use std::path::PathBuf;

/// What libfabric exports; everything else goes through the tables of operations of its objects.
const EXPORTS: &str = "fi_(getinfo|freeinfo|dupinfo|fabric|strerror|version)";

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    let bindings = bindgen::Builder::default()
        .header("wrapper.h")
        .dynamic_library_name("Exports")
        .dynamic_link_require_all(true)
        .allowlist_function(EXPORTS)
        .allowlist_type("fi_.*|fid_.*|fid")
        .allowlist_var("FI_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false)
        .generate()
        .expect(
            "libfabric's headers can be read (Debian: apt-get install libfabric-dev libclang-dev)",
        );
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it")).join("bindings.rs");
    bindings.write_to_file(out).expect("OUT_DIR can be written");
}
