//! What may be typed where.

use std::time::Duration;

use clap::CommandFactory as _;

use super::args::{Authkeys, Nodes, Policy, Users};
use super::*;

fn parsed(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn clap_finds_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn global_flags_stand_in_any_position() {
    for line in [
        "tsd --state-dir /x --json users list",
        "tsd users --state-dir /x --json list",
        "tsd users list --state-dir /x --json",
        "tsd nodes show a --json --state-dir=/x",
        "tsd serve --listen off --state-dir /x --json",
    ] {
        let cli = parsed(line);
        assert_eq!((cli.state_dir.as_deref(), cli.json), (Some("/x".as_ref()), true), "{line}");
    }
}

#[test]
fn commands_are_read() {
    let cli = parsed("tsd authkeys create --user u --reusable --tags a,tag:b --expires 2h");
    let Command::Authkeys(Authkeys::Create(args)) = cli.command else { panic!() };
    assert_eq!(args.tags, ["tag:a", "tag:b"]);
    assert_eq!((args.expires, args.reusable, args.ephemeral), (Duration::from_secs(7200), true, false));
    let cli = parsed("tsd nodes approve-routes n 10.0.0.0/8,10.1.0.0/16");
    let Command::Nodes(Nodes::ApproveRoutes { routes, none, .. }) = cli.command else { panic!() };
    assert_eq!((routes.len(), none), (2, false));
    let cli = parsed("tsd users role alice network-admin");
    let Command::Users(Users::Role { user, role }) = cli.command else { panic!() };
    assert_eq!((user.as_str(), role), ("alice", crate::model::Role::NetworkAdmin));
    let wrong = Cli::try_parse_from(["tsd", "users", "role", "alice", "boss"]).err().unwrap().to_string();
    assert!(wrong.contains("billing-admin"), "{wrong}");
    let cli = parsed("tsd policy set f --yes");
    assert!(matches!(cli.command, Command::Policy(Policy::Set { yes: true, .. })));
}

#[test]
fn policy_edits_are_read_in_the_order_they_are_made() {
    use crate::acl::Edit;
    let line = "tsd policy edit f --add-rule a@ tag:x:22 --remove-rule 3 --remove-rule 9 --add-group g -w \
                --add-test a@ deny tag:x:23 --add-rule b@ *:*";
    let Command::Policy(Policy::Edit(edit)) = parsed(line).command else { panic!() };
    let rule = |src: &str, dst: &str| Edit::AddRule { src: src.into(), dst: dst.into() };
    let test = Edit::AddTest { src: "a@".into(), dst: "tag:x:23".into(), accept: false };
    let want = vec![
        Edit::RemoveRule { line: 9 },
        Edit::RemoveRule { line: 3 },
        Edit::AddGroup { group: "g".into() },
        rule("a@", "tag:x:22"),
        rule("b@", "*:*"),
        test,
    ];
    assert_eq!(edit.changes(), Ok(want));
    for wrong in [
        "policy edit f",
        "policy edit --add-group g",
        "policy edit f --live --add-group g",
        "policy fmt f -w --check",
    ] {
        assert!(Cli::try_parse_from(format!("tsd {wrong}").split(' ')).is_err(), "{wrong}");
    }
    let Command::Policy(Policy::Edit(edit)) = parsed("tsd policy edit f --add-test a maybe b:1").command
    else {
        panic!()
    };
    assert!(edit.changes().unwrap_err().contains("neither accept nor deny"));
}

#[test]
fn the_clients_own_flags_of_the_same_name_do_not_collide() {
    use crate::node::cli::NodeCommand;
    for line in ["tsd node run --state-dir /d --socket /s", "tsd node --socket /s run --state-dir /d"] {
        let Command::Node(args) = parsed(line).command else { panic!() };
        let NodeCommand::Run(run) = args.command else { panic!() };
        assert_eq!((run.state_dir.as_path(), args.socket.as_path()), ("/d".as_ref(), "/s".as_ref()));
    }
    for line in ["tsd node status --json", "tsd node --json status", "tsd --json node status"] {
        let Command::Node(args) = parsed(line).command else { panic!() };
        let NodeCommand::Status(status) = args.command else { panic!() };
        assert!(status.json, "{line}");
    }
}

#[test]
fn mistakes_exit_with_one_and_help_with_nought() {
    let exit = |line: &str| {
        let words = line.split(' ').map(OsString::from);
        format!("{:?}", parse(words).unwrap_err())
    };
    for line in ["tsd bogus", "tsd users", "tsd users create", "tsd authkeys create --user u --expires never"]
    {
        assert_eq!(exit(line), format!("{:?}", ExitCode::from(1)), "{line}");
    }
    assert_eq!(exit("tsd --help"), format!("{:?}", ExitCode::SUCCESS));
}

#[tokio::test]
async fn without_a_server_the_remedy_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let client = Client::new(temp.path());
    let failure = client.get::<Vec<crate::api::types::User>>("/v1/users").await.unwrap_err();
    assert_eq!(failure.status(), 1);
    let socket = temp.path().join("admin.sock");
    let start = format!("no tsd server answers at {}; start it with `tsd serve`", socket.display());
    assert!(failure.text().starts_with(&start), "{}", failure.text());
}
