//! `tsd node …`: the commands of the client, with the official client's names, texts and exit codes.
//!
//! Exit: 0 done, 1 yours to mend, 2 ours. Results go to stdout, talk to stderr.

mod client;
mod commands;
mod text;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

/// Where the daemon listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/tsd/node.sock";

/// The client: joins this machine to a network.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Where the daemon listens.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// Run the daemon in the foreground.
    Run(RunArgs),
    /// Join a network, or come up again; starts the daemon when none answers.
    Up(UpArgs),
    /// Disconnect; the login stays.
    Down,
    /// Disconnect and end the login.
    Logout,
    /// Show this node and its peers.
    Status(StatusArgs),
    /// Print this node's addresses, or a peer's.
    Ip(IpArgs),
    /// Ping a peer through the network and say which way it went.
    Ping(PingArgs),
    /// Measure the network this machine stands in.
    Netcheck {
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
    },
    /// Say whose a tailnet address is.
    Whois {
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
        /// An address, or address and port.
        target: String,
    },
    /// Print the version.
    Version {
        /// Also ask the running daemon.
        #[arg(long)]
        daemon: bool,
    },
}

/// `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Where keys and the last netmap are kept.
    #[arg(long, default_value = "/var/lib/tsd-node", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Name of the interface.
    #[arg(long, default_value = "tsd0", value_name = "NAME")]
    pub tun: String,
    /// UDP port; 0 is any.
    #[arg(long, default_value_t = 41641)]
    pub port: u16,
    /// Without segmentation offload, for kernels where it is broken.
    #[arg(long)]
    pub no_offload: bool,
    /// Leave the terminal's session; `up` starts the daemon so.
    #[arg(long, hide = true)]
    pub background: bool,
}

/// `up`.
#[derive(Debug, Clone, Args, Default)]
pub struct UpArgs {
    /// The server: http(s)://host[:port].
    #[arg(long, value_name = "URL")]
    pub login_server: Option<String>,
    /// A pre-auth key, or file:PATH to read it from.
    #[arg(long, alias = "authkey", value_name = "KEY")]
    pub auth_key: Option<String>,
    /// Name to report instead of the machine's.
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give up after this long (such as 60s or 2m); 0 waits for ever.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Use the network's DNS.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_dns: Option<bool>,
    /// Use routes that other nodes offer.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_routes: Option<bool>,
    /// Refuse incoming connections.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shields_up: Option<bool>,
    /// Tags to ask for, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "TAGS")]
    pub advertise_tags: Option<Vec<String>>,
    /// Log in anew although this node is logged in.
    #[arg(long)]
    pub force_reauth: bool,
}

/// `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// `ip`.
#[derive(Debug, Clone, Args)]
pub struct IpArgs {
    /// Only IPv4.
    #[arg(short = '4', conflicts_with = "v6")]
    pub v4: bool,
    /// Only IPv6.
    #[arg(short = '6')]
    pub v6: bool,
    /// A peer; without it, this node.
    pub peer: Option<String>,
}

/// `ping`.
#[derive(Debug, Clone, Args)]
pub struct PingArgs {
    /// How many; 0 is no limit.
    #[arg(short = 'c', long = "c", default_value_t = 10, value_name = "N")]
    pub count: u32,
    /// Stop when a direct way is found.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub until_direct: bool,
    /// How long one ping may take.
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// An address or a name.
    pub target: String,
}

/// `60s`, `2m`, `1m30s`, `500ms`, `1h`, `0`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write such as 60s, 2m or 500ms");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Ok(total);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(millis).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// What a command ended with.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The user can mend it: exit 1.
    #[error("{0}")]
    Yours(String),
    /// We failed: exit 2.
    #[error("{0}")]
    Ours(String),
    /// Everything was said already: exit 1.
    #[error("")]
    Said,
}

fn yours(text: impl Into<String>) -> Failure {
    Failure::Yours(text.into())
}

/// Runs a command.
pub async fn run(args: NodeArgs) -> ExitCode {
    let done = match args.command {
        NodeCommand::Run(run) => commands::daemon(args.socket, run).await,
        NodeCommand::Up(up) => up::up(&args.socket, up).await,
        NodeCommand::Down => commands::down(&args.socket).await,
        NodeCommand::Logout => commands::logout(&args.socket).await,
        NodeCommand::Status(status) => commands::status(&args.socket, &status).await,
        NodeCommand::Ip(ip) => commands::ip(&args.socket, &ip).await,
        NodeCommand::Ping(ping) => commands::ping(&args.socket, &ping).await,
        NodeCommand::Netcheck { json } => commands::netcheck(&args.socket, json).await,
        NodeCommand::Whois { json, target } => commands::whois(&args.socket, json, &target).await,
        NodeCommand::Version { daemon } => commands::version(&args.socket, daemon).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::from(1),
        Err(Failure::Yours(text)) => {
            text::say(&text);
            ExitCode::from(1)
        }
        Err(Failure::Ours(text)) => {
            text::say(&text);
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Top {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn parse(line: &str) -> NodeArgs {
        Top::try_parse_from(line.split_whitespace()).unwrap().node
    }

    #[test]
    fn the_socket_stands_in_any_position() {
        for line in [
            "node --socket /s status --json",
            "node status --socket /s --json",
            "node status --json --socket=/s",
        ] {
            assert_eq!(parse(line).socket, PathBuf::from("/s"));
        }
        assert_eq!(parse("node down").socket, PathBuf::from(DEFAULT_SOCKET));
    }

    #[test]
    fn ping_and_up_take_the_documented_flags() {
        let args = parse("node ping -c 3 --until-direct=false --socket /s o2");
        let NodeCommand::Ping(ping) = args.command else {
            panic!("not ping");
        };
        assert_eq!((ping.count, ping.until_direct), (3, false));
        assert_eq!(ping.target, "o2");
        let line = "node up --login-server http://x:8080 --authkey k --hostname h --timeout 60s";
        let NodeCommand::Up(up) = parse(line).command else {
            panic!("not up");
        };
        assert_eq!(up.auth_key.as_deref(), Some("k"));
        assert_eq!(up.timeout, Duration::from_secs(60));
        assert!(up.accept_dns.is_none());
        let NodeCommand::Up(up) = parse("node up --auth-key=k --accept-dns=false").command else {
            panic!("not up");
        };
        assert_eq!(up.accept_dns, Some(false));
    }

    #[test]
    fn run_takes_the_documented_flags() {
        let args = parse("node run --state-dir /d --socket /s --tun t0 --port 7 --no-offload");
        let NodeCommand::Run(run) = args.command else {
            panic!("not run");
        };
        assert_eq!((run.tun.as_str(), run.port), ("t0", 7));
        assert!(run.no_offload);
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_duration("60").is_err());
        assert!(parse_duration("").is_err());
        assert!(parse_duration("99999999999999999999s").is_err());
    }
}
