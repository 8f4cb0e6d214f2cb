//! Classifies errors of the server or the connection by their effect: the write was surely not
//! applied, or it may have been applied.
//!
//! Danger: if an applied write counts as not applied, a gateway forgets a claim that exists. So an
//! error counts as "not applied" only if the server is known to refuse before it does anything.
//! After every other error the write may have been applied.

use redis::{ErrorKind, RedisError};

use crate::store::StoreError;

/// Codes with which the server refuses a command or a script before its first write, and their
/// meaning for an operator.
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

/// Texts behind a plain ERR at login, and their meaning for an operator. Only these are reported,
/// because other texts may repeat sent data.
const LOGIN_ERRORS: &[(&str, &str)] = &[
    ("max number of clients", "it has as many connections as its maxclients allows"),
    ("DB index is out of range", "it has no database of this number"),
    ("SELECT is not allowed in cluster mode", "it is a cluster, which has no database numbers"),
];

/// Converts the error of a command that was handed to a connection.
pub(super) fn of_command(error: &RedisError) -> StoreError {
    match code(error) {
        Some((code, Some(meaning))) => {
            StoreError::NotApplied(format!("the server answered {code}: {meaning}"))
        }
        Some((code, None)) => StoreError::MaybeApplied(format!("the server answered {code}")),
        None => StoreError::MaybeApplied(of_transport(error)),
    }
}

/// Describes why there is no connection. Never contains the password: an old server echoes the
/// whole login, so only codes are reported.
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
            let detail = error.detail().unwrap_or_default();
            let meaning = LOGIN_ERRORS
                .iter()
                .find(|(text, _)| detail.starts_with(text))
                .map(|(_, meaning)| *meaning);
            format!(
                "can't connect: the server answered {code}{}",
                meaning.map_or(String::new(), |text| format!(": {text}"))
            )
        }
        None => format!("can't connect: {}", of_transport(error)),
    }
}

/// Describes an error with which the server's access control list (ACL) refused `command`; `None`
/// for any other error.
///
/// The text doesn't promise that nothing was applied: a script may have written before one of its
/// commands was refused.
pub(super) fn denial(error: &RedisError, command: &str) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    let within_script = is_within_script(error);
    // The server answers a refused EXEC with EXECABORT.
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

/// Whether an ACL error is about a command of a script. If so, the script's earlier commands have
/// run.
pub(super) fn is_within_script(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("ACL failure in script") || detail.starts_with(DENIED_IN_SCRIPT)
}

/// The beginning of an ACL error about a script's command on servers before version 7.2; its code
/// is ERR.
const DENIED_IN_SCRIPT: &str = "The user executing the script can't";

/// The kind of right that an ACL error is about.
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

/// Returns the command that an ACL error names in quotes. Only letters, `|`, `_` and `-` pass,
/// because other texts may repeat sent data.
fn denied_command(detail: &str) -> Option<&str> {
    let (_, rest) = detail.split_once("run the '")?;
    let (command, _) = rest.split_once('\'')?;
    let plain = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'|' | b'_' | b'-');
    (command.len() <= 32 && command.bytes().all(plain)).then_some(command)
}

/// Whether the server is a replica: it will never accept a write on this connection, and another
/// server may have taken its place.
pub(super) fn is_replica(error: &RedisError) -> bool {
    matches!(code(error), Some(("READONLY" | "MASTERDOWN", _)))
}

/// Whether the connection itself may be broken.
pub(super) fn is_transport(error: &RedisError) -> bool {
    code(error).is_none()
}

fn code(error: &RedisError) -> Option<(&str, Option<&'static str>)> {
    let known =
        |code: &str| REFUSALS.iter().find(|(known, _)| *known == code).map(|(_, meaning)| *meaning);
    // Errors that are not an answer of the server have no code.
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

    /// Makes an error that the server answered with.
    fn answered(line: &str) -> RedisError {
        let answer = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        answer.extract_error().unwrap_err()
    }

    fn broken() -> RedisError {
        std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer").into()
    }

    #[test]
    fn only_refusals_before_the_first_write_are_not_applied() {
        for (code, meaning) in REFUSALS {
            let text = of_command(&answered(&format!("{code} of s3cret")));
            let StoreError::NotApplied(text) = text else { panic!("{code}: {text:?}") };
            assert!(
                text.contains(code) && text.contains(meaning) && !text.contains("s3cret"),
                "{text}"
            );
        }
        for unclear in [answered("ERR of s3cret"), answered("WRONGTYPE of s3cret"), broken()] {
            let text = of_command(&unclear);
            let StoreError::MaybeApplied(text) = text else { panic!("{unclear:?}: {text:?}") };
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn a_refusal_by_the_acl_names_the_command_and_repeats_no_sent_text() {
        for (line, expected) in [
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
            assert!(denial.contains(expected) && !denial.contains("s3cret"), "{line}: {denial}");
        }
        for other in [answered("ERR of s3cret"), answered("NOAUTH"), broken()] {
            assert_eq!(denial(&other, "GET"), None);
        }
    }

    #[test]
    fn a_failed_connection_is_described_without_the_sent_text() {
        for (line, expected) in [
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
            assert_eq!(of_connecting(&answered(line)), expected, "{line}");
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
    fn replicas_and_broken_connections_are_distinguished_from_other_faults() {
        assert!(is_replica(&answered("READONLY")) && is_replica(&answered("MASTERDOWN")));
        assert!(!is_replica(&answered("OOM")) && !is_replica(&broken()));
        assert!(is_transport(&broken()) && !is_transport(&answered("ERR odd")));
    }
}
