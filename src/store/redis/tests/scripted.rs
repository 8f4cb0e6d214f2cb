//! Servers that a test can't run: a fake that answers from a script, and records its commands.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::store::redis::{RedisAck, RedisOptions};

type CommandLog = Arc<Mutex<Vec<String>>>;

/// Listens. `answer` gets each command, its words joined by spaces, except the commands of the
/// login and the reads of epochs.
async fn scripted(answer: fn(&str) -> &'static str) -> (u16, CommandLog) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, commands) = (listener.local_addr().unwrap().port(), CommandLog::default());
    let log = commands.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer, log.clone()));
        }
    });
    (port, commands)
}

async fn serve(stream: TcpStream, answer: fn(&str) -> &'static str, commands: CommandLog) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(command) = command(&mut read).await {
        let reply = match command.split(' ').next().unwrap() {
            "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n",
            "CLIENT" => "+OK\r\n",
            "INFO" => "-NOPERM no permissions\r\n",
            "TIME" => "*2\r\n$10\r\n1800000000\r\n$1\r\n0\r\n",
            "GET" if command.ends_with(":epoch") => "$16\r\n0123456789abcdef\r\n",
            _ => {
                commands.lock().unwrap().push(command.clone());
                answer(&command)
            }
        };
        if write.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads a command: an array of bulk strings.
async fn command(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut words = Vec::new();
    for _ in 0..number(read).await? {
        let mut word = vec![0; number(read).await? + 2];
        read.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Some(words.join(" "))
}

async fn number(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim().parse().ok()
}

/// Claims at a server with these answers. Returns the outcome and the claim's commands, each by its
/// first words.
async fn claimed_at(answer: fn(&str) -> &'static str) -> (Result<Swap, StoreError>, Vec<String>) {
    let (port, commands) = scripted(answer).await;
    let url = format!("redis://127.0.0.1:{port}");
    let store = Redis::connect(RedisOptions {
        ack: RedisAck::Fsync,
        ..options(&url, Duration::from_secs(4))
    })
    .unwrap();
    // Until the connection is set up, commands don't depend yet on the server's settings.
    until("it is login", async || store.ping().await.is_ok() || commands.lock().unwrap().len() > 2)
        .await;
    let login = std::mem::take(&mut *commands.lock().unwrap());
    assert_eq!(login[..2], ["CONFIG GET appendfsync", "WAITAOF 0 0 1"]);
    let claimed = claims(&store, 1).await;
    let commands =
        commands.lock().unwrap().iter().map(|command| command.chars().take(16).collect()).collect();
    (claimed, commands)
}

#[tokio::test]
async fn what_has_to_be_on_disk_is_waited_for_behind_the_write_on_its_connection() {
    let (claimed, commands) = claimed_at(|command| match command {
        "WAITAOF 1 0 1000" => "*2\r\n:1\r\n:0\r\n",
        "WAITAOF 0 0 1" => "*2\r\n:0\r\n:0\r\n",
        command if command.starts_with("CONFIG") => {
            "%1\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n"
        }
        _ => ":1800000000000\r\n",
    })
    .await;
    assert_eq!(claimed.unwrap(), Swap::Stored);
    assert!(commands[0].starts_with("EVALSHA"), "{commands:?}");
    // The WAITAOF comes after a write: servers since 7.2 don't wait for writes of other connections
    // that this connection has only read.
    assert_eq!(commands[1..], ["SET onceward:pin", "WAITAOF 1 0 1000"]);
}

#[tokio::test]
async fn a_write_that_misses_the_disk_in_time_does_not_count() {
    let (claimed, _) = claimed_at(|command| match command {
        command if command.starts_with("WAITAOF") => "*2\r\n:0\r\n:0\r\n",
        command if command.starts_with("CONFIG") => "-NOPERM no permissions\r\n",
        _ => ":1800000000000\r\n",
    })
    .await;
    assert!(
        matches!(&claimed, Err(StoreError::MaybeApplied(text)) if text.contains("disk")),
        "{claimed:?}"
    );
}

#[tokio::test]
async fn a_server_that_answers_after_its_disk_or_has_no_waitaof_gets_none() {
    for answer in [
        (|command| match command {
            command if command.starts_with("WAITAOF") => "*2\r\n:0\r\n:0\r\n",
            command if command.starts_with("CONFIG") => {
                "%1\r\n$11\r\nappendfsync\r\n$6\r\nalways\r\n"
            }
            _ => ":1800000000000\r\n",
        }) as fn(&str) -> &'static str,
        |command| match command {
            command if command.starts_with("WAITAOF") => "-ERR unknown command 'WAITAOF'\r\n",
            command if command.starts_with("CONFIG") => {
                "%1\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n"
            }
            _ => ":1800000000000\r\n",
        },
    ] {
        let (claimed, commands) = claimed_at(answer).await;
        assert_eq!(claimed.unwrap(), Swap::Stored);
        assert!(commands.len() == 1 && commands[0].starts_with("EVALSHA"), "{commands:?}");
    }
}
