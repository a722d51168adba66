//! Compiles the protobuf messages and services without an installed `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let messages = protox::compile(["proto/storage.proto", "proto/state.proto"], ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(messages)?;
    // In a directory of its own: what it imports has been compiled above, and must not be written over.
    let directory = Path::new(&std::env::var("OUT_DIR")?).join("mesh");
    std::fs::create_dir_all(&directory)?;
    let services = protox::compile(["proto/mesh.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".muster.storage.v1", "crate::pb")
        .out_dir(directory)
        .compile_fds(services)?;
    Ok(())
}
