//! steadfastd
fn main() {}
