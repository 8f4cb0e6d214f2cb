//! What is sent to servers that a test can't have: a server that answers as told, and remembers what it was asked.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::store::redis::{RedisAck, RedisOptions};

type CommandLog = Arc<Mutex<Vec<String>>>;

/// Listens; `answer` is given each command, its words joined by spaces, but for those of the greeting and those that ask for
/// epochs.
async fn scripted(answer: fn(&str) -> &'static str) -> (u16, CommandLog) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), CommandLog::default());
    let noted = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer, noted.clone()));
        }
    });
    (port, asked)
}

async fn serve(stream: TcpStream, answer: fn(&str) -> &'static str, asked: CommandLog) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(command) = command(&mut read).await {
        let said = match command.split(' ').next().unwrap() {
            "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n",
            "CLIENT" => "+OK\r\n",
            "INFO" => "-NOPERM no permissions\r\n",
            "TIME" => "*2\r\n$10\r\n1800000000\r\n$1\r\n0\r\n",
            "GET" if command.ends_with(":epoch") => "$16\r\n0123456789abcdef\r\n",
            _ => {
                asked.lock().unwrap().push(command.clone());
                answer(&command)
            }
        };
        if write.write_all(said.as_bytes()).await.is_err() {
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

/// A claim at a server that answers so, and the commands that it was sent for it, each by its first words.
async fn claimed_at(answer: fn(&str) -> &'static str) -> (Result<Swap, StoreError>, Vec<String>) {
    let (port, asked) = scripted(answer).await;
    let url = format!("redis://127.0.0.1:{port}");
    let store = Redis::connect(RedisOptions {
        ack: RedisAck::Fsync,
        ..options(&url, Duration::from_secs(4))
    })
    .unwrap();
    // What is asked before the connection stands doesn't know yet what the server knows.
    until("it is greeted", async || store.ping().await.is_ok() || asked.lock().unwrap().len() > 2)
        .await;
    let greeted = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(greeted[..2], ["CONFIG GET appendfsync", "WAITAOF 0 0 1"]);
    let claimed = claims(&store, 1).await;
    let asked =
        asked.lock().unwrap().iter().map(|command| command.chars().take(16).collect()).collect();
    (claimed, asked)
}

#[tokio::test]
async fn what_has_to_be_on_disk_is_waited_for_behind_the_write_on_its_connection() {
    let (claimed, asked) = claimed_at(|command| match command {
        "WAITAOF 1 0 1000" => "*2\r\n:1\r\n:0\r\n",
        "WAITAOF 0 0 1" => "*2\r\n:0\r\n:0\r\n",
        command if command.starts_with("CONFIG") => {
            "%1\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n"
        }
        _ => ":1800000000000\r\n",
    })
    .await;
    assert_eq!(claimed.unwrap(), Swap::Stored);
    assert!(asked[0].starts_with("EVALSHA"), "{asked:?}");
    // Behind a write: servers since 7.2 would not wait for what others wrote and this one has only read.
    assert_eq!(asked[1..], ["SET onceward:pin", "WAITAOF 1 0 1000"]);
}

#[tokio::test]
async fn what_the_disk_does_not_have_in_time_does_not_count() {
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
async fn a_server_that_answers_after_its_disk_or_can_not_be_asked_is_not_asked() {
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
        let (claimed, asked) = claimed_at(answer).await;
        assert_eq!(claimed.unwrap(), Swap::Stored);
        assert!(asked.len() == 1 && asked[0].starts_with("EVALSHA"), "{asked:?}");
    }
}
