//! What can be said of the two libraries without a GPU: `cargo run -p nvidia-sys --example versions -- [LIBNCCL [LIBCUDA]]`.
#![expect(clippy::print_stdout, reason = "an example says what it sees")]

use std::path::PathBuf;

use nvidia_sys::{Driver, Nccl};

fn main() {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    match Nccl::load(paths.next().as_deref()).map(|nccl| nccl.version()) {
        Ok(Ok(version)) => println!("NCCL {version}, with every call that dhc uses"),
        Ok(Err(error)) => println!("{error}"),
        Err(error) => println!("{error}"),
    }
    match Driver::load(paths.next().as_deref()).map(|driver| driver.version()) {
        Ok(Ok((major, minor))) => println!("CUDA driver for {major}.{minor}"),
        Ok(Err(error)) => println!("{error}"),
        Err(error) => println!("{error}"),
    }
}
