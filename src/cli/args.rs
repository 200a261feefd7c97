//! What may be typed. The two global flags stand in any position.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(super) use super::policy::args::Policy;
use crate::config::{ServeFlags, parse_duration};
use crate::node::cli::NodeArgs;

/// A private mesh network of your own in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "tsd",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    // A path, as in `tsd node run`: clap hands the value on by name, so both must have one type.
    /// Where the server's state lives [default: $XDG_STATE_HOME/tsd; root: /var/lib/tsd]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON with stable names
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(Box<ServeFlags>),
    /// People who own devices
    #[command(subcommand)]
    Users(Users),
    /// Keys that let devices join without a person
    #[command(subcommand)]
    Authkeys(Authkeys),
    /// Devices; NODE is an id, a name or an address
    #[command(subcommand)]
    Nodes(Nodes),
    /// Devices that wait for approval
    #[command(subcommand)]
    Logins(Logins),
    /// Who may reach whom
    #[command(subcommand)]
    Policy(Policy),
    /// The web console
    #[command(subcommand)]
    Console(Console),
    /// The client: joins this machine to a network
    Node(NodeArgs),
    /// How the server stands
    Status,
    /// The version of this program
    Version,
}

/// `tsd users`.
#[derive(Debug, Subcommand)]
pub enum Users {
    /// Make a user
    Create {
        /// Login name, such as alice
        name: String,
    },
    /// Show all users
    List,
    /// Give a user another name
    Rename {
        /// Id or name
        user: String,
        /// The new name
        name: String,
    },
    /// Say what a user may do, and which role autogroups of the policy they belong to
    Role {
        /// Id or name
        user: String,
        /// owner, admin, network-admin, it-admin, auditor, billing-admin or member
        #[arg(value_parser = role)]
        role: crate::model::Role,
    },
    /// Delete a user who owns no devices
    Delete {
        /// Id or name
        user: String,
    },
}

/// `tsd authkeys`.
#[derive(Debug, Subcommand)]
pub enum Authkeys {
    /// Make a key; it is shown once
    Create(CreateAuthkey),
    /// Show all keys, without their secrets
    List,
    /// Make a key useless; its devices stay
    Revoke {
        /// Id or the whole key
        key: String,
    },
}

/// `tsd authkeys create`.
#[derive(Debug, Args)]
pub struct CreateAuthkey {
    /// Whose the devices become
    #[arg(long)]
    pub user: String,
    /// May be used more than once
    #[arg(long)]
    pub reusable: bool,
    /// Devices are removed some time after they went away
    #[arg(long)]
    pub ephemeral: bool,
    /// Tags for its devices, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = tag)]
    pub tags: Vec<String>,
    /// How long it works, at most 90d
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub expires: Duration,
}

/// `tsd nodes`.
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// Show all devices
    List,
    /// Show all about one
    Show {
        /// Id, name or address
        node: String,
    },
    /// Give a device a name
    Rename {
        /// Id, name or address
        node: String,
        /// The new name
        name: String,
    },
    /// Replace a device's tags; without tags it goes back to its user
    Tag {
        /// Id, name or address
        node: String,
        /// Tags, separated by commas or spaces
        #[arg(value_delimiter = ',', value_parser = tag)]
        tags: Vec<String>,
    },
    /// Make a device log in again
    Expire {
        /// Id, name or address
        node: String,
    },
    /// Remove a device for good
    Delete {
        /// Id, name or address
        node: String,
    },
    /// Approve the routes a device offers: all, or exactly those given
    ApproveRoutes {
        /// Id, name or address
        node: String,
        /// Routes, separated by commas or spaces
        #[arg(value_delimiter = ',')]
        routes: Vec<String>,
        /// Approve none, and take back what was approved
        #[arg(long, conflicts_with = "routes")]
        none: bool,
    },
}

/// `tsd logins`.
#[derive(Debug, Subcommand)]
pub enum Logins {
    /// Show who waits
    List,
    /// Let a device in
    Approve {
        /// Id from the list or from the page the device shows
        login: String,
        /// As whose; not needed when there is one user
        #[arg(long)]
        user: Option<String>,
    },
    /// Turn a device away
    Reject {
        /// Id from the list
        login: String,
    },
}

/// `tsd console`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Console {
    /// Make a new link that signs in once
    Link,
}

fn role(text: &str) -> Result<crate::model::Role, String> {
    crate::model::Role::parse(text).ok_or_else(|| {
        let all = crate::model::Role::ALL.map(crate::model::Role::as_str);
        format!("{text:?} is no role; there are {}", all.join(", "))
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|e| e.to_string())
}

/// `a` is short for `tag:a`.
fn tag(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("a tag is empty; write tags like server,tag:db".to_owned());
    }
    Ok(if text.starts_with("tag:") { text.to_owned() } else { format!("tag:{text}") })
}
