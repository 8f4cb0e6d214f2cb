//! Checks before a gateway starts whether the servers can keep its records: version, eviction,
//! persistence, replicas.
//!
//! The servers' settings decide whether an acknowledged write can be lost. No answer to a write
//! reveals these settings.

use std::collections::HashMap;

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::answer::unexpected;
use super::client::Redis;
use super::connection::Commands;
use super::options::RedisAck;
use super::servers::ServerPartitions;
use super::transport::CONNECT_TIMEOUT_MIN;
use crate::store::{Grade, Records, Remark, StoreError};

/// The oldest version with all commands that the store uses, such as RESP3 and scripts that read
/// `TIME` and then write.
const VERSION_MIN: u32 = 6;

const SETTINGS: [&str; 5] = ["maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save"];

impl Redis {
    /// Checks every server that holds records.
    ///
    /// # Errors
    /// A server doesn't answer.
    pub async fn preflight(&self) -> Result<Vec<Remark>, StoreError> {
        let groups = self
            .servers
            .wait_until_complete(Instant::now() + self.timeout.max(CONNECT_TIMEOUT_MIN))
            .await?;
        let pinged = self.ping().await;
        let mut remarks = Vec::new();
        for group in groups {
            remarks.extend(self.preflight_server(&group).await?);
        }
        match pinged {
            // The server answers. If replicas or rights are missing, the remarks include that.
            Ok(()) | Err(StoreError::MaybeApplied(_)) => Ok(remarks),
            Err(_) if remarks.iter().any(|remark| remark.grade != Grade::Sound) => Ok(remarks),
            Err(error) => Err(error),
        }
    }

    /// Checks one server.
    async fn preflight_server(&self, group: &ServerPartitions) -> Result<Vec<Remark>, StoreError> {
        let address = group.server.address(self.deadline()).await?;
        let mut remarks = self.missing_rights(group, &format!("server {address}")).await?;
        let info = match self.text(group, redis::cmd("INFO")).await {
            Ok(info) => fields(&info),
            Err(_) if !remarks.is_empty() => return Ok(remarks),
            Err(error) => return Err(error),
        };
        let mut settings = HashMap::new();
        for name in SETTINGS {
            let mut query = redis::cmd("CONFIG");
            query.arg("GET").arg(name);
            settings.extend(self.setting(group, &query, name).await);
        }
        let server = format!("server {}", info.get("tcp_port").map_or("?", String::as_str));
        remarks.extend(judge(&server, &info, &settings, self.ack));
        Ok(remarks)
    }

    async fn text(&self, group: &ServerPartitions, query: Cmd) -> Result<String, StoreError> {
        let answer = group.server.call_strict(Commands::One(&query), None, self.deadline()).await?;
        redis::from_redis_value(answer).map_err(|_| unexpected())
    }

    /// Returns a setting; `None` if the server doesn't reveal it. Managed servers often don't.
    async fn setting(
        &self,
        group: &ServerPartitions,
        query: &Cmd,
        name: &'static str,
    ) -> Option<(&'static str, String)> {
        match group.server.call_strict(Commands::One(query), None, self.deadline()).await {
            Ok(Value::Map(pairs)) => pairs
                .into_iter()
                .next()
                .and_then(|(_, value)| Some((name, redis::from_redis_value(value).ok()?))),
            Ok(Value::Array(parts)) => parts
                .into_iter()
                .nth(1)
                .and_then(|value| Some((name, redis::from_redis_value(value).ok()?))),
            _ => None,
        }
    }
}

fn fields(info: &str) -> HashMap<String, String> {
    info.lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn judge(
    server: &str,
    info: &HashMap<String, String>,
    settings: &HashMap<&str, String>,
    ack: RedisAck,
) -> Vec<Remark> {
    let info_field = |name: &str| info.get(name).map_or("", String::as_str);
    let set = |name: &str| settings.get(name).map(String::as_str);
    let remark = |grade, text: String, advice| {
        let advice = if grade == Grade::Sound { "" } else { advice };
        Remark { grade, text: format!("{server}: {text}"), advice }
    };

    let version = info_field("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let mut remarks = vec![remark(
        major.map_or(Grade::Unknown, |major| grade(major >= VERSION_MIN)),
        format!("version {version}"),
        "use Redis 6 or newer, or Valkey",
    )];
    remarks.push(remark(
        grade(info_field("role") == "master"),
        format!("it is a {}", info_field("role")),
        "point the store's url at the primary, or at the sentinels",
    ));
    remarks.push(eviction(set("maxmemory"), set("maxmemory-policy"), remark));
    remarks.push(persistence(set, version, ack, remark));
    if let RedisAck::Replicas(wanted) = ack {
        let replicas: u32 = info_field("connected_slaves").parse().unwrap_or(0);
        remarks.push(remark(
            grade(replicas >= wanted),
            format!("{replicas} replicas; {wanted} have to confirm"),
            "without them nothing is forwarded: start them, or lower ack",
        ));
        // Any replica may be promoted, so each must have every acknowledged write.
        if replicas > wanted {
            remarks.push(remark(
                Grade::Unsound,
                format!("{} of the replicas may lack acknowledged writes", replicas - wanted),
                "set ack to the number of replicas: any of them may be promoted",
            ));
        }
    }
    remarks
}

/// Judges whether the server may evict records.
fn eviction(
    maxmemory: Option<&str>,
    policy: Option<&str>,
    remark: impl Fn(Grade, String, &'static str) -> Remark,
) -> Remark {
    match (maxmemory, policy) {
        (Some("0"), _) => {
            remark(Grade::Sound, "no limit of memory, so nothing is evicted".into(), "")
        }
        (Some(_), Some(policy)) => remark(
            grade(policy == "noeviction"),
            format!("maxmemory-policy {policy}"),
            "set maxmemory-policy noeviction: an evicted record is a key that runs again",
        ),
        _ => remark(
            Grade::Unknown,
            "the server doesn't reveal maxmemory-policy".into(),
            "make sure that it is noeviction",
        ),
    }
}

/// Judges what a crash of the server may lose.
fn persistence<'s>(
    set: impl Fn(&str) -> Option<&'s str>,
    version: &str,
    ack: RedisAck,
    remark: impl Fn(Grade, String, &'static str) -> Remark,
) -> Remark {
    match (set("appendonly"), set("appendfsync"), set("save")) {
        (Some("yes"), Some("always"), _) => {
            remark(Grade::Sound, "every write is on disk before it is answered".into(), "")
        }
        (Some("yes"), fsync, _) if ack == RedisAck::Fsync => {
            fsync_on_request(version, fsync.unwrap_or("unknown"), remark)
        }
        (Some("yes"), fsync, _) => remark(
            Grade::Sound,
            format!(
                "appendfsync {}: a crash of the server may lose the last second",
                fsync.unwrap_or("unknown")
            ),
            "",
        ),
        (Some(_), _, save) => remark(
            Grade::Unsound,
            format!(
                "appendonly no, save {:?}: a crash of the server loses writes that it acknowledged",
                save.unwrap_or_default()
            ),
            "set appendonly yes, and appendfsync always if a crash must lose nothing",
        ),
        _ => remark(
            Grade::Unknown,
            "the server doesn't reveal its persistence".into(),
            "make sure that appendonly is on",
        ),
    }
}

fn grade(is_sound: bool) -> Grade {
    if is_sound { Grade::Sound } else { Grade::Unsound }
}

/// Judges `ack = "fsync"` if `appendfsync` is not "always".
fn fsync_on_request(
    version: &str,
    fsync: &str,
    remark: impl Fn(Grade, String, &'static str) -> Remark,
) -> Remark {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) >= (Some(7), Some(2)) {
        // Safe, but slow: one disk write no longer serves several requests.
        let text = format!(
            "appendfsync {fsync}: claims and results wait for the disk one after the other, \
             some ten a second; with appendfsync always many reach it at once"
        );
        return remark(Grade::Sound, text, "");
    }
    let text = format!("appendfsync {fsync}: a crash of the server may lose the last second");
    remark(
        Grade::Unsound,
        text,
        "ack = \"fsync\" needs appendfsync always, or a server of version 7.2 or newer",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(
        info: &[(&str, &str)],
        settings: &[(&'static str, &str)],
        ack: RedisAck,
    ) -> Vec<Grade> {
        let info = info.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let settings = settings.iter().map(|(name, value)| (*name, (*value).into())).collect();
        judge("s", &info, &settings, ack).into_iter().map(|remark| remark.grade).collect()
    }

    #[test]
    fn settings_that_lose_records_are_unsound() {
        use Grade::{Sound, Unknown, Unsound};
        let primary = [("redis_version", "7.0.15"), ("role", "master"), ("connected_slaves", "2")];
        let kept = [("maxmemory", "0"), ("appendonly", "yes"), ("appendfsync", "always")];
        assert_eq!(grades(&primary, &kept, RedisAck::Memory), [Sound, Sound, Sound, Sound]);
        assert_eq!(
            grades(&primary, &kept, RedisAck::Replicas(2)),
            [Sound, Sound, Sound, Sound, Sound]
        );
        assert_eq!(
            grades(&primary, &kept, RedisAck::Replicas(3)),
            [Sound, Sound, Sound, Sound, Unsound]
        );
        assert_eq!(
            grades(&primary, &kept, RedisAck::Replicas(1)),
            [Sound, Sound, Sound, Sound, Sound, Unsound]
        );
        let lossy = [
            ("maxmemory", "100"),
            ("maxmemory-policy", "allkeys-lru"),
            ("appendonly", "no"),
            ("save", ""),
        ];
        assert_eq!(
            grades(&[("redis_version", "5.0"), ("role", "slave")], &lossy, RedisAck::Memory),
            [Unsound; 4]
        );
        let everysec = [
            ("maxmemory", "1"),
            ("maxmemory-policy", "noeviction"),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
        ];
        assert_eq!(grades(&primary, &everysec, RedisAck::Memory), [Sound; 4]);
        assert_eq!(grades(&primary, &everysec, RedisAck::Fsync), [Sound, Sound, Sound, Unsound]);
        // A server of this version can wait for its disk on request.
        let newer = [("redis_version", "7.2.4"), ("role", "master")];
        assert_eq!(grades(&newer, &everysec, RedisAck::Fsync), [Sound; 4]);
        assert_eq!(grades(&primary, &[], RedisAck::Memory), [Sound, Sound, Unknown, Unknown]);
    }
}
