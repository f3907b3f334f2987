//! Compiles the BPF programs of generator and sink with clang and generates their skeletons.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

const DIRECTORY: &str = "src/generator/bpf";

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
    for name in ["generate", "sink"] {
        let source = format!("{DIRECTORY}/{name}.bpf.c");
        let built = SkeletonBuilder::new()
            .source(&source)
            .clang_args(&clang_args)
            .build_and_generate(out_dir.join(format!("{name}.skel.rs")));
        if let Err(error) = built {
            panic!(
                "cannot build {source}: {error:#}\n\
                 clang 14 or newer and the kernel's user-space headers are needed \
                 (Debian: apt install clang linux-libc-dev libelf-dev zlib1g-dev)"
            );
        }
    }
}
