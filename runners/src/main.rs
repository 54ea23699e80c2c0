//! dhc.
fn main() {}
