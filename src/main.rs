//! The program: parse, run, exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything may speak TLS: with no provider chosen, rustls would panic at first use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match tsd::cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(tsd::cli::run(cli));
            // Blocking reads (stdin) must not hold the exit.
            runtime.shutdown_background();
            code
        }
        Err(_) => ExitCode::from(2),
    }
}
