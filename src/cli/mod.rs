//! Command line: clap types in `args`, one file per command; stdout is data, stderr is talk. Exit
//! status: 0 done, 1 yours to mend, 2 ours.

mod args;
mod authkeys;
mod client;
mod exit;
mod logins;
mod nodes;
mod policy;
mod printer;
mod server;
mod users;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

pub use args::{Cli, Command};
use client::Client;
use exit::Failure;
use printer::Printer;

use crate::config::{ServeFlags, Sources};

/// Parses the command line, or prints help or the mistake and says with what to exit.
///
/// # Errors
/// The exit status: 0 for help and version, 1 for a mistake.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(args).map_err(|error| {
        // Printing help into a closed pipe is no failure.
        let _ = error.print();
        ExitCode::from(u8::from(error.use_stderr()))
    })
}

/// Runs a command to its end.
pub async fn run(cli: Cli) -> ExitCode {
    let printer = Printer::new(cli.json);
    let cli = match cli.command {
        // The client has words and exit statuses of its own.
        Command::Node(args) => return crate::node::cli::run(args).await,
        command => Cli { command, ..cli },
    };
    let result = dispatch(cli, &printer).await;
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit_code()
        }
    }
}

async fn dispatch(cli: Cli, printer: &Printer) -> Result<(), Failure> {
    let utf8 = |path: PathBuf| {
        let text = path.into_os_string().into_string();
        text.map_err(|_| Failure::User("--state-dir is no UTF-8; choose another directory".to_owned()))
    };
    let state_dir = cli.state_dir.map(utf8).transpose()?;
    let command = match cli.command {
        Command::Serve(flags) => return server::serve(*flags, state_dir).await,
        Command::Version => return server::version(printer),
        other => other,
    };
    let sources =
        Sources::read(ServeFlags::default(), state_dir).map_err(|e| Failure::User(e.to_string()))?;
    let client = Client::new(&sources.state_dir_only());
    match command {
        Command::Users(command) => users::run(command, &client, printer).await,
        Command::Authkeys(command) => authkeys::run(command, &client, printer).await,
        Command::Nodes(command) => nodes::run(command, &client, printer).await,
        Command::Logins(command) => logins::run(command, &client, printer).await,
        Command::Policy(command) => policy::run(command, &client, printer).await,
        Command::Console(args::Console::Link) => server::console_link(&client, printer).await,
        Command::Status => server::status(&client, printer).await,
        // All ended above.
        Command::Serve(_) | Command::Version | Command::Node(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
