//! Finds the rights that the server's user lacks: commands, keys and channels of the server's
//! access control list (ACL).
//!
//! Servers don't reveal the rights of a plain user. But a server checks these rights for each
//! command that is queued in a transaction, and a discarded transaction runs nothing. So the check
//! queues every command of the store once, on a connection of its own.
//!
//! Danger: without a transaction the same commands would run. So the check queues nothing unless
//! the server confirmed `MULTI`.

use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::time::timeout;

use super::client::Redis;
use super::fault::{self, AclSubject};
use super::layout::KeyNames;
use super::options::{Features, RedisAck};
use super::servers::ServerPartitions;
use super::transport::CONNECT_TIMEOUT_MIN;
use crate::key::{PARTITIONS, SLOT_BYTES, Slot, Space};
use crate::store::{Grade, Note, Remark, StoreError};

/// The function of the store that needs a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RightUse {
    Records,
    Waiters,
    Lists,
    Settings,
    Replicas,
    Disk,
    Cluster,
    Presence,
    Append,
    Log,
    Outbox,
    Cache,
}

impl RightUse {
    /// Whether a store with these options has the function.
    fn is_used(self, features: Features, ack: RedisAck, cluster: bool) -> bool {
        match self {
            RightUse::Records
            | RightUse::Waiters
            | RightUse::Lists
            | RightUse::Settings
            | RightUse::Presence => true,
            RightUse::Replicas => matches!(ack, RedisAck::Replicas(_)),
            RightUse::Disk => ack == RedisAck::Fsync,
            RightUse::Cluster => cluster,
            RightUse::Append | RightUse::Log => features.event_log,
            RightUse::Outbox => features.outbox,
            RightUse::Cache => features.local_cache,
        }
    }

    /// Returns the grade and the effect of a missing right.
    fn without(self) -> (Grade, &'static str) {
        match self {
            RightUse::Records => (
                Grade::Unsound,
                "claims and results can't be stored, or lost requests aren't found",
            ),
            RightUse::Waiters => {
                (Grade::Limited, "duplicates that wait at another gateway answer up to 2 s late")
            }
            RightUse::Lists => (Grade::Limited, "operators can't list operations"),
            RightUse::Settings => {
                (Grade::Limited, "the server's settings, restarts and failovers can't be seen")
            }
            RightUse::Replicas | RightUse::Disk => (Grade::Unsound, "`ack` can't be confirmed"),
            RightUse::Cluster => {
                (Grade::Limited, "calls fail while the cluster moves their partition")
            }
            RightUse::Presence => {
                (Grade::Limited, "`onceward store copy` can't see that a gateway uses the store")
            }
            RightUse::Append => (Grade::Unsound, "changes are stored without their event"),
            RightUse::Log => (
                Grade::Limited,
                "the event log can't be read or trimmed, or duplicates aren't counted",
            ),
            RightUse::Outbox => (
                Grade::Unsound,
                "outcomes of routes that publish can't be stored, or their events aren't delivered",
            ),
            RightUse::Cache => (Grade::Limited, "local_cache keeps nothing"),
        }
    }
}

/// Placeholder for a key or a channel among the arguments of a command.
const NAME: &str = "\0";

/// The commands that the store or its scripts send, the arguments that probe them, and the
/// functions that need them. A subcommand follows `|`, as access control lists write it.
const COMMANDS: &[(&str, &[&str], RightUse)] = &[
    ("evalsha", &["0000000000000000000000000000000000000000", "1", NAME], RightUse::Records),
    ("eval", &["return 0", "1", NAME], RightUse::Records),
    ("get", &[NAME], RightUse::Records),
    ("set", &[NAME, ""], RightUse::Records),
    ("mget", &[NAME], RightUse::Records),
    ("getrange", &[NAME, "0", "0"], RightUse::Records),
    ("time", &[], RightUse::Records),
    ("zadd", &[NAME, "0", "x"], RightUse::Records),
    ("zrem", &[NAME, "x"], RightUse::Records),
    ("zcount", &[NAME, "0", "0"], RightUse::Records),
    ("zrangebyscore", &[NAME, "0", "0"], RightUse::Records),
    ("publish", &[NAME, ""], RightUse::Waiters),
    ("subscribe", &[NAME], RightUse::Waiters),
    ("unsubscribe", &[NAME], RightUse::Waiters),
    ("zcard", &[NAME], RightUse::Lists),
    ("zrange", &[NAME, "0", "0"], RightUse::Lists),
    ("scan", &["0"], RightUse::Lists),
    ("info", &[], RightUse::Settings),
    ("config|get", &["maxmemory"], RightUse::Settings),
    ("wait", &["0", "1"], RightUse::Replicas),
    ("waitaof", &["0", "0", "1"], RightUse::Disk),
    ("asking", &[], RightUse::Cluster),
    ("hget", &[NAME, "l"], RightUse::Append),
    ("xadd", &[NAME, "*", "l", ""], RightUse::Append),
    ("hset", &[NAME, "l", ""], RightUse::Append),
    ("hmget", &[NAME, "l"], RightUse::Log),
    ("xread", &["STREAMS", NAME, "0"], RightUse::Log),
    ("xrange", &[NAME, "-", "+"], RightUse::Log),
    ("xlen", &[NAME], RightUse::Log),
    ("xtrim", &[NAME, "MAXLEN", "0"], RightUse::Log),
    ("rpush", &[NAME, ""], RightUse::Log),
    ("lpop", &[NAME], RightUse::Log),
    ("llen", &[NAME], RightUse::Log),
    ("lrange", &[NAME, "0", "0"], RightUse::Log),
    ("ltrim", &[NAME, "0", "0"], RightUse::Log),
    ("incrby", &[NAME, "0"], RightUse::Log),
    ("hset", &[NAME, "l", ""], RightUse::Presence),
    ("hgetall", &[NAME], RightUse::Presence),
    ("hdel", &[NAME, "l"], RightUse::Presence),
    ("append", &[NAME, ""], RightUse::Outbox),
    ("hget", &[NAME, "l"], RightUse::Outbox),
    ("hset", &[NAME, "l", ""], RightUse::Outbox),
    ("hdel", &[NAME, "l"], RightUse::Outbox),
    ("hmget", &[NAME, "l"], RightUse::Outbox),
    ("hscan", &[NAME, "0"], RightUse::Outbox),
    ("zrange", &[NAME, "0", "0"], RightUse::Outbox),
    ("zrevrangebyscore", &[NAME, "0", "0"], RightUse::Outbox),
    ("client|tracking", &["ON", "OPTIN"], RightUse::Cache),
    ("client|caching", &["YES"], RightUse::Cache),
    ("pttl", &[NAME], RightUse::Cache),
];

/// A command that probes a right.
struct RightProbe {
    right: AclRight,
    used_for: RightUse,
    command: Cmd,
}

/// A right, as an access control list writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AclRight {
    Command(&'static str),
    Keys(String),
    Channels(String),
}

impl AclRight {
    fn subject(&self) -> AclSubject {
        match self {
            AclRight::Command(_) => AclSubject::Command,
            AclRight::Keys(_) => AclSubject::Key,
            AclRight::Channels(_) => AclSubject::Channel,
        }
    }

    fn describe(&self) -> String {
        match self {
            AclRight::Command(command) => {
                format!("the command {} (+{command})", command.to_ascii_uppercase())
            }
            AclRight::Keys(pattern) => format!("the keys {pattern} (~{pattern})"),
            AclRight::Channels(pattern) => format!("the channels {pattern} (&{pattern})"),
        }
    }
}

/// Returns the names of keys, each with the function that needs it.
fn key_names(names: &KeyNames, partition: u16) -> Vec<(Vec<u8>, RightUse)> {
    let mut hash = [0; SLOT_BYTES];
    hash[0] = partition.to_be_bytes()[1];
    let slots = [Space::Enforced, Space::Shadow].map(|space| Slot::from_hash(space, hash));
    let mut keys = Vec::new();
    for slot in &slots {
        keys.extend(
            [names.record_key(slot), names.tombstone_key(slot)]
                .map(|name| (name, RightUse::Records)),
        );
    }
    let records = [names.due_key(partition), names.epoch_key(partition), names.ping_key(None)];
    keys.extend(
        records
            .into_iter()
            .chain(Note::ALL.map(|note| names.note_key(note)))
            .map(|name| (name, RightUse::Records)),
    );
    keys.extend([
        (names.copy_key(), RightUse::Records),
        (names.gateways_key(), RightUse::Presence),
    ]);
    keys.extend(
        [names.events_key(partition), names.chain_key(partition)]
            .map(|name| (name, RightUse::Append)),
    );
    keys.extend(
        [names.trimmed_key(partition), names.readers_key(partition)]
            .map(|name| (name, RightUse::Log)),
    );
    let observed =
        [names.observations_key(), names.observed_bytes_key(), names.observed_sizes_key()];
    keys.extend(observed.map(|name| (name, RightUse::Log)));
    // The name of a sink ends a key as the hash of a slot does. With the same length it gets the
    // same pattern.
    let outbox = names.outbox_keys(partition, &"0".repeat(2 * SLOT_BYTES));
    keys.extend(outbox.map(|name| (name, RightUse::Outbox)));
    keys
}

/// Returns the pattern that matches a name in all partitions, of all slots and of all sinks.
fn pattern_of(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let (name, hash) = match name.rsplit_once(':') {
        Some((name, hash)) if hash.len() == 2 * SLOT_BYTES => (name, ":*"),
        _ => (&*name, ""),
    };
    match name.split_once("{p").and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
        Some((before, after)) => format!("{before}{{p*}}{after}{hash}"),
        None => format!("{name}{hash}"),
    }
}

/// Returns the probes for all rights that a store with these options needs.
fn probes(names: &KeyNames, features: Features, ack: RedisAck, cluster: bool) -> Vec<RightProbe> {
    let channel = names.record_key(&Slot::from_hash(Space::Enforced, [0; SLOT_BYTES]));
    let ping = names.ping_key(None);
    let mut probes = Vec::new();
    for (name, args, used_for) in COMMANDS {
        let mut command = Cmd::new();
        name.split('|').for_each(|word| _ = command.arg(word));
        let subject = if *used_for == RightUse::Waiters { &channel } else { &ping };
        args.iter()
            .for_each(|arg| _ = if *arg == NAME { command.arg(subject) } else { command.arg(arg) });
        if *used_for == RightUse::Waiters {
            probes.push(RightProbe {
                right: AclRight::Channels(names.all_match()),
                used_for: *used_for,
                command: command.clone(),
            });
        }
        probes.push(RightProbe { right: AclRight::Command(name), used_for: *used_for, command });
    }
    for command in ["PUBLISH", "SUBSCRIBE"] {
        let mut probe = redis::cmd(command);
        probe.arg(names.outbox_channel());
        if command == "PUBLISH" {
            probe.arg("");
        }
        probes.push(RightProbe {
            right: AclRight::Channels(names.all_match()),
            used_for: RightUse::Outbox,
            command: probe,
        });
    }
    for partition in [0, PARTITIONS - 1] {
        for (name, used_for) in key_names(names, partition) {
            let (mut get, mut set) = (redis::cmd("GET"), redis::cmd("SET"));
            get.arg(&name);
            set.arg(&name).arg("");
            for command in [get, set] {
                probes.push(RightProbe {
                    right: AclRight::Keys(pattern_of(&name)),
                    used_for,
                    command,
                });
            }
        }
    }
    probes.retain(|probe| probe.used_for.is_used(features, ack, cluster));
    probes
}

/// Returns each missing right once. If no key is granted, all keys count as one right.
fn missing(
    names: &KeyNames,
    probes: &[RightProbe],
    answers: &[Value],
) -> Vec<(AclRight, RightUse)> {
    let mut missing: Vec<(AclRight, RightUse)> = Vec::new();
    for (probe, answer) in probes.iter().zip(answers) {
        let Value::ServerError(error) = answer else { continue };
        let error = RedisError::from(error.clone());
        let lacks = fault::denial(&error, "").is_some()
            && AclSubject::of(error.detail().unwrap_or_default()) == probe.right.subject();
        if lacks && !missing.iter().any(|(right, _)| *right == probe.right) {
            missing.push((probe.right.clone(), probe.used_for));
        }
    }
    let is_key = |right: &AclRight| matches!(right, AclRight::Keys(_));
    let mut patterns: Vec<&AclRight> =
        probes.iter().map(|probe| &probe.right).filter(|right| is_key(right)).collect();
    patterns.dedup();
    if patterns.iter().all(|pattern| missing.iter().any(|(right, _)| right == *pattern)) {
        missing.retain(|(right, _)| !is_key(right));
        missing.push((AclRight::Keys(names.all_match()), RightUse::Records));
    }
    missing
}

const ADVICE: &str =
    "grant it to the user of the store's url: docs/OPERATING.md has the smallest list";

impl Redis {
    /// Returns a remark for each right that the user of the store's url lacks at this server.
    ///
    /// # Errors
    /// The server doesn't answer.
    pub(super) async fn missing_rights(
        &self,
        group: &ServerPartitions,
        server: &str,
    ) -> Result<Vec<Remark>, StoreError> {
        let address = group.server.address(self.deadline()).await?;
        let opened =
            self.connector.connect_to(address, |_| {}).await.map_err(StoreError::NotApplied)?;
        let mut connection = opened.connection;
        let unanswered = || {
            StoreError::NotApplied(
                "the server did not answer when its user's rights were tried".into(),
            )
        };
        let remark = |(grade, without): (Grade, &str), right: &str| Remark {
            grade,
            text: format!("{server}: its user has no right to {right}: {without}"),
            advice: ADVICE,
        };
        let limit = self.timeout.max(CONNECT_TIMEOUT_MIN);
        let mut send = async |commands: &Pipeline| {
            let answers =
                timeout(limit, connection.send_packed_commands(commands, 0, commands.len())).await;
            answers.map_err(|_| unanswered())?.map_err(|error| fault::of_command(&error))
        };
        // Outside a transaction EXEC does nothing. Within one it would run the queued commands, so
        // it is sent first, and never again.
        let mut transaction = redis::pipe();
        transaction.cmd("EXEC").cmd("MULTI");
        let answers = send(&transaction).await?;
        let mut remarks = Vec::new();
        let without = if self.features.event_log {
            RightUse::Log.without()
        } else {
            (Grade::Limited, "other rights can't be tried")
        };
        let transactions =
            || remark(without, "the commands MULTI, EXEC, DISCARD (+multi +exec +discard)");
        if answers.iter().any(is_denied) {
            remarks.push(transactions());
        }
        if answers.last().is_none_or(|answer| matches!(answer, Value::ServerError(_))) {
            return Ok(remarks);
        }
        let probes = probes(&self.names, self.features, self.ack, self.servers.is_cluster());
        let mut queue = Pipeline::with_capacity(probes.len() + 1);
        probes.iter().for_each(|probe| _ = queue.add_command(probe.command.clone()));
        queue.cmd("DISCARD");
        let answers = send(&queue).await?;
        if answers.last().is_some_and(is_denied) {
            remarks.push(transactions());
        }
        remarks.extend(
            missing(&self.names, &probes, &answers)
                .iter()
                .map(|(right, used_for)| remark(used_for.without(), &right.describe())),
        );
        Ok(remarks)
    }
}

fn is_denied(answer: &Value) -> bool {
    let Value::ServerError(error) = answer else { return false };
    fault::denial(&RedisError::from(error.clone()), "").is_some()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> KeyNames {
        KeyNames::new("onceward").unwrap()
    }

    const ALL: Features = Features { event_log: true, local_cache: true, outbox: true };

    /// Returns the commands that a source text sends, in lower case; the first word of each.
    fn sent(text: &str) -> BTreeSet<String> {
        let calls = ["call('", "cmd(\""];
        let names = calls.iter().flat_map(|call| text.split(call).skip(1));
        let ends = ['\'', '"'];
        names.filter_map(|rest| Some(rest.split_once(ends)?.0.to_ascii_lowercase())).collect()
    }

    #[test]
    fn every_command_that_is_sent_is_probed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/redis");
        // Sent at login, to sentinels, or by `onceward store copy`. The errors of logins and
        // sentinels name the missing right, and OPERATING lists the rights for a copy.
        let elsewhere = ["del", "ping", "cluster", "sentinel", "role", "multi", "exec", "discard"];
        let probed: BTreeSet<&str> =
            COMMANDS.iter().filter_map(|(name, ..)| name.split('|').next()).collect();
        let mut files = 0;
        let entries = [folder.clone(), folder.join("scripts")]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap());
        for entry in entries {
            let path = entry.unwrap().path();
            if !path.is_file() || path.ends_with("tests.rs") {
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for command in sent(text) {
                assert!(
                    probed.contains(&*command) || elsewhere.contains(&&*command),
                    "{command} of {}",
                    path.display()
                );
            }
        }
        assert!(files > 40, "{files}");
    }

    fn denied(text: &str) -> Value {
        redis::parse_redis_value(format!("-NOPERM {text}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn each_missing_right_is_named_once_and_all_keys_as_one() {
        let probes = probes(&names(), ALL, RedisAck::Fsync, true);
        let key = "No permissions to access a key";
        let answered = |denies: &dyn Fn(&RightProbe) -> Option<&'static str>| {
            let answers: Vec<Value> =
                probes.iter().map(|probe| denies(probe).map_or(Value::Okay, denied)).collect();
            missing(&names(), &probes, &answers)
                .iter()
                .map(|(right, _)| right.describe())
                .collect::<Vec<_>>()
        };
        assert!(answered(&|_| None).is_empty());
        let all = answered(&|probe| {
            (probe.right.subject() != AclSubject::Command || probe.command.args_iter().count() > 2)
                .then_some(key)
        });
        assert_eq!(all, ["the keys onceward:* (~onceward:*)"]);
        let some = |probe: &RightProbe| match &probe.right {
            AclRight::Keys(pattern) if pattern.ends_with(":due") => Some(key),
            AclRight::Channels(_) => Some("No permissions to access a channel"),
            AclRight::Command("config|get") => {
                Some("User u has no permissions to run the 'config|get' command")
            }
            _ => None,
        };
        assert_eq!(
            answered(&some),
            [
                "the channels onceward:* (&onceward:*)",
                "the command CONFIG|GET (+config|get)",
                "the keys onceward:{p*}:due (~onceward:{p*}:due)",
            ]
        );
    }

    #[test]
    fn only_used_rights_are_probed() {
        let rights = |features, ack| -> Vec<AclRight> {
            probes(&names(), features, ack, false).into_iter().map(|probe| probe.right).collect()
        };
        let few = rights(Features::default(), RedisAck::Memory);
        for unused in ["xadd", "wait", "waitaof", "asking", "client|tracking", "append"] {
            assert!(!few.contains(&AclRight::Command(unused)), "{unused}");
        }
        assert!(rights(ALL, RedisAck::Replicas(1)).contains(&AclRight::Command("wait")));
        assert!(
            few.contains(&AclRight::Keys("onceward:{p*}:st:*".into()))
                && few.contains(&AclRight::Keys("onceward:ping".into()))
        );
    }
}
