//! `tsd policy` as it is typed.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use crate::acl::Edit as Change;

/// `tsd policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Print the policy in force, letter for letter
    Get,
    /// Check, show and store a policy and apply it at once
    Set {
        /// HuJSON file; - reads standard input
        file: PathBuf,
        /// Why, for the history
        #[arg(long, default_value = "", value_name = "TEXT")]
        comment: String,
        /// Do not ask when access is taken away
        #[arg(long)]
        yes: bool,
    },
    /// Check a policy file and run its tests; changes nothing
    Check {
        /// HuJSON file; - reads standard input
        file: PathBuf,
        /// Check against this network instead of the running server's
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
    /// Say whether X reaches Y, by which rule, and what is nearest to allowing it
    Explain(Box<Explain>),
    /// Count what each rule joins, and the names that nothing uses
    Stats {
        /// HuJSON file; the policy in force if left out
        file: Option<PathBuf>,
        /// On this network instead of the running server's
        #[arg(long, value_name = "FILE", requires = "file")]
        topology: Option<PathBuf>,
    },
    /// Show who gains and who loses what from policy A to policy B; status 1 if tests of B fail
    Diff {
        /// A file, the number of a stored version, or the word live
        a: String,
        /// As A
        b: String,
        /// On this network instead of the running server's
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
    /// Show all stored policies
    History,
    /// Print a stored policy, letter for letter
    Show {
        /// Its number in the history
        #[arg(value_name = "VERSION")]
        number: u64,
    },
    /// Store an old policy again and apply it at once
    Rollback {
        /// Its number in the history
        #[arg(value_name = "VERSION")]
        number: u64,
        /// Why, for the history
        #[arg(long, default_value = "", value_name = "TEXT")]
        comment: String,
        /// Do not ask when access is taken away
        #[arg(long)]
        yes: bool,
    },
    /// Print a policy file in its canonical form; comments stay
    Fmt {
        /// HuJSON file; - reads standard input
        file: PathBuf,
        /// Only say whether it is in that form; exit status 1 if not
        #[arg(long, conflicts_with = "write")]
        check: bool,
        /// Write the file instead of printing
        #[arg(short, long)]
        write: bool,
    },
    /// Change a policy in small ways; comments and layout stay
    Edit(Box<Edit>),
    /// Print what a policy gives every node of a network; needs no server
    Compile {
        /// HuJSON file; - reads standard input
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// JSON file with users and nodes
        #[arg(long, value_name = "FILE")]
        topology: PathBuf,
        /// Only this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Add counts and times
        #[arg(long)]
        stats: bool,
    },
}

/// `tsd policy explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// A device, its id or address, a person (alice@), a tag, or any address
    #[arg(long, value_name = "X")]
    pub from: String,
    /// The same; also an address behind a route or a name of "hosts"
    #[arg(long, value_name = "Y")]
    pub to: String,
    /// Such as 443; left out, anything
    #[arg(long)]
    pub port: Option<String>,
    /// tcp, udp, icmp or a number [default with a port: tcp]
    #[arg(long)]
    pub proto: Option<String>,
    /// The login on the other machine, for SSH
    #[arg(long, value_name = "LOGIN")]
    pub ssh_user: Option<String>,
    /// By this policy instead of the one in force
    #[arg(long, value_name = "FILE")]
    pub draft: Option<PathBuf>,
    /// On this network instead of the running server's
    #[arg(long, value_name = "FILE", requires = "draft")]
    pub topology: Option<PathBuf>,
}

/// `tsd policy edit`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args([
    "add_group", "add_user_to_group", "remove_user_from_group", "add_host", "add_tag_owner", "add_rule",
    "remove_rule", "add_test",
]))]
pub struct Edit {
    /// HuJSON file; - reads standard input
    #[arg(required_unless_present = "live", conflicts_with = "live")]
    pub file: Option<PathBuf>,
    /// Change the policy in force
    #[arg(long)]
    pub live: bool,
    /// Write the file instead of printing
    #[arg(short, long, conflicts_with = "live")]
    pub write: bool,
    /// Why, for the history
    #[arg(long, default_value = "", value_name = "TEXT", requires = "live")]
    pub comment: String,
    /// Do not ask when access is taken away
    #[arg(long, requires = "live")]
    pub yes: bool,
    /// Make an empty group
    #[arg(long, value_name = "GROUP")]
    pub add_group: Vec<String>,
    /// Put a user into a group, which is made if need be
    #[arg(long, num_args = 2, value_names = ["USER", "GROUP"])]
    pub add_user_to_group: Vec<String>,
    /// Take a user out of a group
    #[arg(long, num_args = 2, value_names = ["USER", "GROUP"])]
    pub remove_user_from_group: Vec<String>,
    /// Name an address or network
    #[arg(long, num_args = 2, value_names = ["NAME", "ADDRESS"])]
    pub add_host: Vec<String>,
    /// Declare a tag, or let somebody else apply it too
    #[arg(long, num_args = 2, value_names = ["TAG", "OWNER"])]
    pub add_tag_owner: Vec<String>,
    /// Let SRC reach DST, such as tag:server:22; without ports all of them
    #[arg(long, num_args = 2, value_names = ["SRC", "DST[:PORTS]"])]
    pub add_rule: Vec<String>,
    /// Take away the rule that stands on a line
    #[arg(long, value_name = "LINE")]
    pub remove_rule: Vec<u32>,
    /// Assert that SRC reaches DST (accept) or does not (deny)
    #[arg(long, num_args = 3, value_names = ["SRC", "accept|deny", "DST:PORT"])]
    pub add_test: Vec<String>,
}

impl Edit {
    /// The changes in the order they are made: rules go first, from the last line up, because the lines
    /// are those of the text as it is; names come before the rules that use them.
    ///
    /// # Errors
    /// When a test says neither accept nor deny.
    pub(in crate::cli) fn changes(&self) -> Result<Vec<Change>, String> {
        let mut out = Vec::new();
        let mut lines = self.remove_rule.clone();
        lines.sort_unstable_by_key(|line| std::cmp::Reverse(*line));
        out.extend(lines.into_iter().map(|line| Change::RemoveRule { line }));
        out.extend(self.add_group.iter().map(|group| Change::AddGroup { group: group.clone() }));
        let mut pairs = |words: &[String], make: fn(String, String) -> Change| {
            let pairs = words.chunks_exact(2);
            out.extend(pairs.filter_map(|p| Some(make(p.first()?.clone(), p.last()?.clone()))));
        };
        pairs(&self.add_host, |name, address| Change::AddHost { name, address });
        pairs(&self.add_tag_owner, |tag, owner| Change::AddTagOwner { tag, owner });
        pairs(&self.add_user_to_group, |user, group| Change::AddUserToGroup { user, group });
        pairs(&self.remove_user_from_group, |user, group| Change::RemoveUserFromGroup { user, group });
        pairs(&self.add_rule, |src, dst| Change::AddRule { src, dst });
        for test in self.add_test.chunks_exact(3) {
            let [src, verdict, dst] = test else { continue };
            let accept = match verdict.as_str() {
                "accept" => true,
                "deny" => false,
                other => return Err(format!("{other:?} is neither accept nor deny")),
            };
            out.push(Change::AddTest { src: src.clone(), dst: dst.clone(), accept });
        }
        Ok(out)
    }
}
