//! How the shared object is linked.

fn main() {
    // Bound at once: the first call of malloc must not have to look for anything. Never unloaded: the
    // hooks for threads and fork stay behind.
    for option in ["-Wl,-z,now", "-Wl,-z,nodelete", "-Wl,--gc-sections", "-Wl,--as-needed"] {
        println!("cargo::rustc-cdylib-link-arg={option}");
    }
    // The C library is needed even if only weak names of it are used.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--push-state,--no-as-needed,-lc,--pop-state");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpagoda_malloc.so");
    let script = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default() + "/later.ld";
    println!("cargo::rustc-cdylib-link-arg=-Wl,-T,{script}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,separate-loadable-segments");
    println!("cargo::rerun-if-changed=later.ld");
    println!("cargo::rerun-if-changed=build.rs");
}
