//! Compiles the protobuf messages and services without an installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let services = protox::compile(["proto/host.proto", "proto/files.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(services)?;
    Ok(())
}
