//! Compiles the XDP program with clang and generates its skeleton.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/redirect.bpf.c";
const DIRECTORY: &str = "src/bpf";

fn main() {
    println!("cargo::rerun-if-changed={DIRECTORY}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut clang_args = vec!["-Wall".to_owned(), "-Werror".to_owned()];
    // clang's BPF target does not search the directory where Debian and its kin keep the
    // <asm/...> half of the kernel's headers.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let headers = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&headers).is_dir() {
        clang_args.push(format!("-I{headers}"));
    }
    let built = SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(clang_args)
        .build_and_generate(out_dir.join("redirect.skel.rs"));
    if let Err(error) = built {
        panic!(
            "cannot build {SOURCE}: {error:#}\n\
             clang 14 or newer and the kernel's user-space headers are needed \
             (Debian: apt install clang linux-libc-dev libelf-dev zlib1g-dev)"
        );
    }
}
