//! What an error of the server or the connection says about a write: certainly not applied, or perhaps.
//!
//! Danger: calling a write "not applied" that was applied makes a gateway forget a claim that stands. So an error counts
//! as such only where the server is known to refuse before it does anything; all else may have been applied.

use redis::{ErrorKind, RedisError};

use crate::store::StoreError;

/// Codes with which the server refuses a command or a script before its first write, and what an operator makes of them.
const REFUSALS: &[(&str, &str)] = &[
    ("LOADING", "it is still loading its data"),
    ("READONLY", "it is a read-only replica"),
    ("OOM", "its maxmemory is reached"),
    ("MISCONF", "it can't persist, and is set to refuse writes then"),
    ("NOREPLICAS", "it has too few replicas for its min-replicas-to-write"),
    ("NOAUTH", "it wants a password"),
    ("WRONGPASS", "user name or password are wrong"),
    ("BUSY", "it is busy with a script of somebody"),
    ("MASTERDOWN", "it is a replica without its primary"),
    ("CLUSTERDOWN", "its cluster is down"),
    ("TRYAGAIN", "its cluster is moving this partition"),
    ("MOVED", "it is a cluster node that doesn't hold this partition"),
    ("ASK", "its cluster is moving this partition"),
    ("CROSSSLOT", "it is a cluster that doesn't accept this key"),
    ("NOSCRIPT", "it forgets scripts as soon as they are loaded"),
];

/// What the server says after a plain ERR while it greets, and what an operator makes of it. Only these are told, since
/// other texts may repeat what was sent.
const GREETINGS: &[(&str, &str)] = &[
    ("max number of clients", "it has as many connections as its maxclients allows"),
    ("DB index is out of range", "it has no database of this number"),
    ("SELECT is not allowed in cluster mode", "it is a cluster, which has no database numbers"),
];

/// The error of a command that was handed to a connection.
pub(super) fn of_command(error: &RedisError) -> StoreError {
    match code(error) {
        Some((code, Some(meaning))) => {
            StoreError::NotApplied(format!("the server answered {code}: {meaning}"))
        }
        Some((code, None)) => StoreError::MaybeApplied(format!("the server answered {code}")),
        None => StoreError::MaybeApplied(of_transport(error)),
    }
}

/// Why no connection came about. Never has the password: an old server echoes the whole greeting, so only codes are told.
pub(super) fn of_connecting(error: &RedisError) -> String {
    if let ErrorKind::AuthenticationFailed = error.kind() {
        return "can't connect: user name or password are wrong".into();
    }
    if let Some(denial) = denial(error, "a command") {
        return format!("can't connect: {denial}");
    }
    match code(error) {
        Some((code, Some(meaning))) => {
            format!("can't connect: the server answered {code}: {meaning}")
        }
        Some((code, None)) => {
            let said = error.detail().unwrap_or_default();
            let meaning = GREETINGS
                .iter()
                .find(|(text, _)| said.starts_with(text))
                .map(|(_, meaning)| *meaning);
            format!(
                "can't connect: the server answered {code}{}",
                meaning.map_or(String::new(), |text| format!(": {text}"))
            )
        }
        None => format!("can't connect: {}", of_transport(error)),
    }
}

/// What to say of an error with which the server's access control list (ACL) refused `command`; `None` for any other error.
///
/// A script may have written something before one of its commands was refused, so this does not say that nothing was applied.
pub(super) fn denial(error: &RedisError, command: &str) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    let within_script = is_within_script(error);
    // A refused EXEC is answered with EXECABORT.
    let denied = error.code() == Some("NOPERM") || detail.contains(" NOPERM ");
    if !denied && !within_script {
        return None;
    }
    let command =
        denied_command(detail).map_or_else(|| command.to_owned(), str::to_ascii_uppercase);
    let what = match AclSubject::of(detail) {
        AclSubject::Command => "this command",
        AclSubject::Key => "one of its keys",
        AclSubject::Channel => "its channel",
    };
    let script = if within_script { " within a script" } else { "" };
    Some(format!(
        "the server answered NOPERM to {command}{script}: its user has no right to {what}; \
         `onceward doctor` names each missing right"
    ))
}

/// Whether an ACL error is about a command that a script called: whatever the script did before it is done.
pub(super) fn is_within_script(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("ACL failure in script") || detail.starts_with(DENIED_IN_SCRIPT)
}

/// How servers before version 7.2 begin an error of a script's command that the ACL refused; its code is ERR.
const DENIED_IN_SCRIPT: &str = "The user executing the script can't";

/// Which right an ACL error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AclSubject {
    /// The right to run the command.
    Command,
    /// The right to a key.
    Key,
    /// The right to a channel.
    Channel,
}

impl AclSubject {
    /// Reads the text behind NOPERM, of any server version.
    pub(super) fn of(detail: &str) -> AclSubject {
        if detail.contains(" channel") {
            AclSubject::Channel
        } else if [
            "access a key",
            "access one of the keys",
            "access at least one of the keys",
            "' key",
        ]
        .iter()
        .any(|text| detail.contains(text))
        {
            AclSubject::Key
        } else {
            AclSubject::Command
        }
    }
}

/// The command that an ACL error names in quotes. Only letters and `|` pass, since other texts may repeat what was sent.
fn denied_command(detail: &str) -> Option<&str> {
    let (_, rest) = detail.split_once("run the '")?;
    let (command, _) = rest.split_once('\'')?;
    let plain = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'|' | b'_' | b'-');
    (command.len() <= 32 && command.bytes().all(plain)).then_some(command)
}

/// Whether the server can't write and never will under this connection: another server may have taken its place.
pub(super) fn is_replica(error: &RedisError) -> bool {
    matches!(code(error), Some(("READONLY" | "MASTERDOWN", _)))
}

/// Whether the connection itself is in doubt.
pub(super) fn is_transport(error: &RedisError) -> bool {
    code(error).is_none()
}

fn code(error: &RedisError) -> Option<(&str, Option<&'static str>)> {
    let known =
        |code: &str| REFUSALS.iter().find(|(known, _)| *known == code).map(|(_, meaning)| *meaning);
    // The kinds that are no answer of the server have no code.
    error.code().map(|code| (code, known(code)))
}

fn of_transport(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Io => error.to_string(),
        ErrorKind::RESP3NotSupported => "the server is older than Redis 6".into(),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            "the server's answer can't be read".into()
        }
        ErrorKind::AuthenticationFailed => "user name or password are wrong".into(),
        ErrorKind::InvalidClientConfig => "the settings of the connection are wrong".into(),
        _ => "the connection failed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that the server answered with.
    fn answered(line: &str) -> RedisError {
        let answer = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        answer.extract_error().unwrap_err()
    }

    fn broken() -> RedisError {
        std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer").into()
    }

    #[test]
    fn only_what_the_server_refuses_before_it_writes_is_not_applied() {
        for (code, meaning) in REFUSALS {
            let told = of_command(&answered(&format!("{code} of s3cret")));
            let StoreError::NotApplied(told) = told else { panic!("{code}: {told:?}") };
            assert!(
                told.contains(code) && told.contains(meaning) && !told.contains("s3cret"),
                "{told}"
            );
        }
        for doubtful in [answered("ERR of s3cret"), answered("WRONGTYPE of s3cret"), broken()] {
            let told = of_command(&doubtful);
            let StoreError::MaybeApplied(told) = told else { panic!("{doubtful:?}: {told:?}") };
            assert!(!told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn a_refusal_by_the_acl_names_the_command_and_nothing_that_was_sent() {
        for (line, told) in [
            (
                "NOPERM this user has no permissions to run the 'config|get' command",
                "to CONFIG|GET: its user has no right to this",
            ),
            (
                "NOPERM User s3cret has no permissions to run the 'zcard' command",
                "to ZCARD: its user has no right to this command",
            ),
            (
                "NOPERM User s3cret has no permissions to run the 's3cret 1' command",
                "to GET: its user has no right to this command",
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                "to GET: its user has no right to one",
            ),
            (
                "NOPERM No permissions to access a key",
                "to GET: its user has no right to one of its keys",
            ),
            (
                "NOPERM No permissions to access the 's3cret' key",
                "to GET: its user has no right to one of its keys",
            ),
            (
                "NOPERM No permissions to access a channel",
                "to GET: its user has no right to its channel",
            ),
            (
                "EXECABORT Transaction discarded because of: NOPERM this user has no permissions to run the 'exec' command",
                "to EXEC: its",
            ),
            (
                "ERR The user executing the script can't publish to the channel mentioned in the command",
                "to GET within a script",
            ),
            (
                "ERR The user executing the script can't run this command or subcommand",
                "to GET within a script",
            ),
            (
                "NOPERM ACL failure in script: User s3cret has no permissions to run the 'publish' command",
                "to PUBLISH within a script",
            ),
        ] {
            let denial = denial(&answered(line), "GET").unwrap();
            assert!(denial.contains(told) && !denial.contains("s3cret"), "{line}: {denial}");
        }
        for other in [answered("ERR of s3cret"), answered("NOAUTH"), broken()] {
            assert_eq!(denial(&other, "GET"), None);
        }
    }

    #[test]
    fn why_no_connection_came_about_is_told_without_what_was_sent() {
        for (line, told) in [
            (
                "WRONGPASS s3cret",
                "can't connect: the server answered WRONGPASS: user name or password are wrong",
            ),
            (
                "LOADING s3cret",
                "can't connect: the server answered LOADING: it is still loading its data",
            ),
            (
                "ERR max number of clients reached s3cret",
                "can't connect: the server answered ERR: it has as many connections as its maxclients allows",
            ),
            ("ERR unknown command 's3cret'", "can't connect: the server answered ERR"),
        ] {
            assert_eq!(of_connecting(&answered(line)), told, "{line}");
        }
        assert!(of_connecting(&broken()).contains("reset by peer"));
        let wrong = (ErrorKind::AuthenticationFailed, "s3cret").into();
        assert_eq!(of_connecting(&wrong), "can't connect: user name or password are wrong");
        assert_eq!(
            of_command(&wrong).to_string(),
            StoreError::MaybeApplied("user name or password are wrong".into()).to_string()
        );
        let settings = (ErrorKind::InvalidClientConfig, "s3cret").into();
        assert_eq!(
            of_connecting(&settings),
            "can't connect: the settings of the connection are wrong"
        );
        assert_eq!(
            of_connecting(&(ErrorKind::RESP3NotSupported, "").into()),
            "can't connect: the server is older than Redis 6"
        );
        assert_eq!(
            of_connecting(&(ErrorKind::Parse, "s3cret").into()),
            "can't connect: the server's answer can't be read"
        );
        assert_eq!(
            of_connecting(&(ErrorKind::Client, "s3cret").into()),
            "can't connect: the connection failed"
        );
    }

    #[test]
    fn a_replica_and_a_connection_in_doubt_are_told_from_other_faults() {
        assert!(is_replica(&answered("READONLY")) && is_replica(&answered("MASTERDOWN")));
        assert!(!is_replica(&answered("OOM")) && !is_replica(&broken()));
        assert!(is_transport(&broken()) && !is_transport(&answered("ERR odd")));
    }
}
