//! Which rights the server's user lacks: commands, keys and channels of the server's access control list (ACL).
//!
//! Servers do not tell a plain user its rights. But they check them for each command that is queued in a transaction, and a
//! discarded transaction runs nothing: so every command that the store sends is queued once, on a connection of its own.
//!
//! Danger: without a transaction the same commands would run. So nothing is queued unless the server confirmed `MULTI`.

use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::time::timeout;

use super::dial::CONNECT_TIMEOUT_MIN;
use super::fault::{self, Lack};
use super::layout::Names;
use super::servers::Group;
use super::{Ack, Grade, Redis, Remark};
use crate::key::{PARTITIONS, SLOT_BYTES, Slot, Space};
use crate::store::{Note, StoreError};

/// Which parts of a store its user uses beside the records: [`Redis::survey`] looks whether the server's user has the rights
/// that they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The event log.
    pub event_log: bool,
    /// Records kept in the process (`local_cache`).
    pub local_cache: bool,
}

/// What a right is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
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
    Cache,
}

impl Part {
    /// Whether a store with these options uses it.
    fn is_used(self, features: Features, ack: Ack, cluster: bool) -> bool {
        match self {
            Part::Records | Part::Waiters | Part::Lists | Part::Settings | Part::Presence => true,
            Part::Replicas => matches!(ack, Ack::Replicas(_)),
            Part::Disk => ack == Ack::Fsync,
            Part::Cluster => cluster,
            Part::Append | Part::Log => features.event_log,
            Part::Cache => features.local_cache,
        }
    }

    /// How much is lost without the right, and what.
    fn without(self) -> (Grade, &'static str) {
        match self {
            Part::Records => (
                Grade::Unsound,
                "claims and results can't be stored, or lost requests aren't found",
            ),
            Part::Waiters => {
                (Grade::Limited, "duplicates that wait at another gateway answer up to 2 s late")
            }
            Part::Lists => (Grade::Limited, "operators can't list operations"),
            Part::Settings => {
                (Grade::Limited, "the server's settings, restarts and failovers can't be seen")
            }
            Part::Replicas | Part::Disk => (Grade::Unsound, "`ack` can't be confirmed"),
            Part::Cluster => (Grade::Limited, "calls fail while the cluster moves their partition"),
            Part::Presence => {
                (Grade::Limited, "`onceward store copy` can't see that a gateway uses the store")
            }
            Part::Append => (Grade::Unsound, "changes are stored without their event"),
            Part::Log => (
                Grade::Limited,
                "the event log can't be read or trimmed, or duplicates aren't counted",
            ),
            Part::Cache => (Grade::Limited, "local_cache keeps nothing"),
        }
    }
}

/// Stands for a key, or a channel, among the arguments of a command.
const NAME: &str = "\0";

/// The commands that the store sends, or its scripts call; how they are probed, and what they are needed for. A subcommand stands
/// behind `|`, as access control lists write it.
const COMMANDS: &[(&str, &[&str], Part)] = &[
    ("evalsha", &["0000000000000000000000000000000000000000", "1", NAME], Part::Records),
    ("eval", &["return 0", "1", NAME], Part::Records),
    ("get", &[NAME], Part::Records),
    ("set", &[NAME, ""], Part::Records),
    ("mget", &[NAME], Part::Records),
    ("getrange", &[NAME, "0", "0"], Part::Records),
    ("time", &[], Part::Records),
    ("zadd", &[NAME, "0", "x"], Part::Records),
    ("zrem", &[NAME, "x"], Part::Records),
    ("zcount", &[NAME, "0", "0"], Part::Records),
    ("zrangebyscore", &[NAME, "0", "0"], Part::Records),
    ("publish", &[NAME, ""], Part::Waiters),
    ("subscribe", &[NAME], Part::Waiters),
    ("unsubscribe", &[NAME], Part::Waiters),
    ("zcard", &[NAME], Part::Lists),
    ("zrange", &[NAME, "0", "0"], Part::Lists),
    ("scan", &["0"], Part::Lists),
    ("info", &[], Part::Settings),
    ("config|get", &["maxmemory"], Part::Settings),
    ("wait", &["0", "1"], Part::Replicas),
    ("waitaof", &["0", "0", "1"], Part::Disk),
    ("asking", &[], Part::Cluster),
    ("hget", &[NAME, "l"], Part::Append),
    ("xadd", &[NAME, "*", "l", ""], Part::Append),
    ("hset", &[NAME, "l", ""], Part::Append),
    ("hmget", &[NAME, "l"], Part::Log),
    ("xread", &["STREAMS", NAME, "0"], Part::Log),
    ("xrange", &[NAME, "-", "+"], Part::Log),
    ("xlen", &[NAME], Part::Log),
    ("xtrim", &[NAME, "MAXLEN", "0"], Part::Log),
    ("rpush", &[NAME, ""], Part::Log),
    ("lpop", &[NAME], Part::Log),
    ("llen", &[NAME], Part::Log),
    ("lrange", &[NAME, "0", "0"], Part::Log),
    ("ltrim", &[NAME, "0", "0"], Part::Log),
    ("incrby", &[NAME, "0"], Part::Log),
    ("hset", &[NAME, "l", ""], Part::Presence),
    ("hgetall", &[NAME], Part::Presence),
    ("hdel", &[NAME, "l"], Part::Presence),
    ("client|tracking", &["ON", "OPTIN"], Part::Cache),
    ("client|caching", &["YES"], Part::Cache),
    ("pttl", &[NAME], Part::Cache),
];

/// A right that is probed.
struct Probe {
    right: Right,
    part: Part,
    command: Cmd,
}

/// A right, as an access control list writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Right {
    Command(&'static str),
    Keys(String),
    Channels(String),
}

impl Right {
    fn lack(&self) -> Lack {
        match self {
            Right::Command(_) => Lack::Command,
            Right::Keys(_) => Lack::Key,
            Right::Channels(_) => Lack::Channel,
        }
    }

    fn describe(&self) -> String {
        match self {
            Right::Command(command) => {
                format!("the command {} (+{command})", command.to_ascii_uppercase())
            }
            Right::Keys(pattern) => format!("the keys {pattern} (~{pattern})"),
            Right::Channels(pattern) => format!("the channels {pattern} (&{pattern})"),
        }
    }
}

/// The names of keys, each with what it is needed for.
fn key_names(names: &Names, partition: u16) -> Vec<(Vec<u8>, Part)> {
    let mut hash = [0; SLOT_BYTES];
    hash[0] = partition.to_be_bytes()[1];
    let slots = [Space::Enforced, Space::Shadow].map(|space| Slot::from_hash(space, hash));
    let mut keys = Vec::new();
    for slot in &slots {
        keys.extend(
            [names.record_key(slot), names.tombstone_key(slot)].map(|name| (name, Part::Records)),
        );
    }
    let records = [names.due_key(partition), names.epoch_key(partition), names.ping_key(None)];
    keys.extend(
        records
            .into_iter()
            .chain(Note::ALL.map(|note| names.note_key(note)))
            .map(|name| (name, Part::Records)),
    );
    keys.extend([(names.copy_key(), Part::Records), (names.gateways_key(), Part::Presence)]);
    keys.extend(
        [names.events_key(partition), names.chain_key(partition)].map(|name| (name, Part::Append)),
    );
    keys.extend(
        [names.trimmed_key(partition), names.readers_key(partition)].map(|name| (name, Part::Log)),
    );
    let observed =
        [names.observations_key(), names.observed_bytes_key(), names.observed_sizes_key()];
    keys.extend(observed.map(|name| (name, Part::Log)));
    keys
}

/// The pattern that matches a name in every partition, and of every slot.
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

/// Probes for all rights that such a store needs.
fn probes(names: &Names, features: Features, ack: Ack, cluster: bool) -> Vec<Probe> {
    let channel = names.record_key(&Slot::from_hash(Space::Enforced, [0; SLOT_BYTES]));
    let ping = names.ping_key(None);
    let mut probes = Vec::new();
    for (name, args, part) in COMMANDS {
        let mut command = Cmd::new();
        name.split('|').for_each(|word| _ = command.arg(word));
        let subject = if *part == Part::Waiters { &channel } else { &ping };
        args.iter()
            .for_each(|arg| _ = if *arg == NAME { command.arg(subject) } else { command.arg(arg) });
        if *part == Part::Waiters {
            probes.push(Probe {
                right: Right::Channels(names.all_match()),
                part: *part,
                command: command.clone(),
            });
        }
        probes.push(Probe { right: Right::Command(name), part: *part, command });
    }
    for partition in [0, PARTITIONS - 1] {
        for (name, part) in key_names(names, partition) {
            let (mut get, mut set) = (redis::cmd("GET"), redis::cmd("SET"));
            get.arg(&name);
            set.arg(&name).arg("");
            for command in [get, set] {
                probes.push(Probe { right: Right::Keys(pattern_of(&name)), part, command });
            }
        }
    }
    probes.retain(|probe| probe.part.is_used(features, ack, cluster));
    probes
}

/// Takes together what the server answered: each missing right once, and all keys as one right where no key is granted.
fn missing(names: &Names, probes: &[Probe], answers: &[Value]) -> Vec<(Right, Part)> {
    let mut missing: Vec<(Right, Part)> = Vec::new();
    for (probe, answer) in probes.iter().zip(answers) {
        let Value::ServerError(error) = answer else { continue };
        let error = RedisError::from(error.clone());
        let lacks = fault::denial(&error, "").is_some()
            && Lack::of(error.detail().unwrap_or_default()) == probe.right.lack();
        if lacks && !missing.iter().any(|(right, _)| *right == probe.right) {
            missing.push((probe.right.clone(), probe.part));
        }
    }
    let is_key = |right: &Right| matches!(right, Right::Keys(_));
    let mut patterns: Vec<&Right> =
        probes.iter().map(|probe| &probe.right).filter(|right| is_key(right)).collect();
    patterns.dedup();
    if patterns.iter().all(|pattern| missing.iter().any(|(right, _)| right == *pattern)) {
        missing.retain(|(right, _)| !is_key(right));
        missing.push((Right::Keys(names.all_match()), Part::Records));
    }
    missing
}

const ADVICE: &str =
    "grant it to the user of the store's url: docs/OPERATING.md has the smallest list";

impl Redis {
    /// Names the rights that the user of the store's url lacks at this server.
    ///
    /// # Errors
    /// The server can't be asked.
    pub(super) async fn missing_rights(
        &self,
        group: &Group,
        server: &str,
    ) -> Result<Vec<Remark>, StoreError> {
        let address = group.links.address(self.deadline()).await?;
        let dialled = self.dialer.dial_to(address, |_| {}).await.map_err(StoreError::NotApplied)?;
        let mut connection = dialled.connection;
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
        let mut ask = async |commands: &Pipeline| {
            let answers =
                timeout(limit, connection.send_packed_commands(commands, 0, commands.len())).await;
            answers.map_err(|_| unanswered())?.map_err(|error| fault::of_command(&error))
        };
        // Outside a transaction EXEC does nothing. Within one it would run what was queued, so it is sent first, and never again.
        let mut transaction = redis::pipe();
        transaction.cmd("EXEC").cmd("MULTI");
        let answers = ask(&transaction).await?;
        let mut remarks = Vec::new();
        let without = if self.features.event_log {
            Part::Log.without()
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
        let answers = ask(&queue).await?;
        if answers.last().is_some_and(is_denied) {
            remarks.push(transactions());
        }
        remarks.extend(
            missing(&self.names, &probes, &answers)
                .iter()
                .map(|(right, part)| remark(part.without(), &right.describe())),
        );
        Ok(remarks)
    }
}

fn is_denied(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if fault::denial(&RedisError::from(error.clone()), "").is_some())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> Names {
        Names::new("onceward").unwrap()
    }

    const ALL: Features = Features { event_log: true, local_cache: true };

    /// The commands that a source text sends, in lower case; the first word of each.
    fn sent(text: &str) -> BTreeSet<String> {
        let calls = ["call('", "cmd(\""];
        let names = calls.iter().flat_map(|call| text.split(call).skip(1));
        let ends = ['\'', '"'];
        names.filter_map(|rest| Some(rest.split_once(ends)?.0.to_ascii_lowercase())).collect()
    }

    #[test]
    fn every_command_that_is_sent_is_probed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/redis");
        // Sent while it connects, or to sentinels, whose answers name what is missing.
        // Or by `onceward store copy`, for which OPERATING names them.
        let elsewhere = ["del", "ping", "cluster", "sentinel", "role", "multi", "exec", "discard"];
        let probed: BTreeSet<&str> =
            COMMANDS.iter().filter_map(|(name, ..)| name.split('|').next()).collect();
        let mut files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
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
        assert!(files > 20, "{files}");
    }

    fn denied(text: &str) -> Value {
        redis::parse_redis_value(format!("-NOPERM {text}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn each_missing_right_is_named_once_and_all_keys_as_one() {
        let probes = probes(&names(), ALL, Ack::Fsync, true);
        let key = "No permissions to access a key";
        let answered = |denies: &dyn Fn(&Probe) -> Option<&'static str>| {
            let answers: Vec<Value> =
                probes.iter().map(|probe| denies(probe).map_or(Value::Okay, denied)).collect();
            missing(&names(), &probes, &answers)
                .iter()
                .map(|(right, _)| right.describe())
                .collect::<Vec<_>>()
        };
        assert!(answered(&|_| None).is_empty());
        let all = answered(&|probe| {
            (probe.right.lack() != Lack::Command || probe.command.args_iter().count() > 2)
                .then_some(key)
        });
        assert_eq!(all, ["the keys onceward:* (~onceward:*)"]);
        let some = |probe: &Probe| match &probe.right {
            Right::Keys(pattern) if pattern.ends_with(":due") => Some(key),
            Right::Channels(_) => Some("No permissions to access a channel"),
            Right::Command("config|get") => {
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
    fn only_what_is_used_is_probed() {
        let rights = |features, ack| -> Vec<Right> {
            probes(&names(), features, ack, false).into_iter().map(|probe| probe.right).collect()
        };
        let few = rights(Features::default(), Ack::Memory);
        for unused in ["xadd", "wait", "waitaof", "asking", "client|tracking"] {
            assert!(!few.contains(&Right::Command(unused)), "{unused}");
        }
        assert!(rights(ALL, Ack::Replicas(1)).contains(&Right::Command("wait")));
        assert!(
            few.contains(&Right::Keys("onceward:{p*}:st:*".into()))
                && few.contains(&Right::Keys("onceward:ping".into()))
        );
    }
}
