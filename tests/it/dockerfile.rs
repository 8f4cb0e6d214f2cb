//! The Dockerfile, parsed without an engine: its copied files, commands and ports exist.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The repository's root, which is the build context.
const CONTEXT: &str = env!("CARGO_MANIFEST_DIR");

/// The default addresses of the gateway.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
const DEFAULT_ADMIN: &str = "127.0.0.1:8081";

/// An instruction and the rest of its line.
struct Instruction {
    name: String,
    rest: String,
}

impl Instruction {
    /// Returns the words that are not an `--option`.
    fn words(&self) -> Vec<&str> {
        self.rest.split_whitespace().filter(|word| !word.starts_with("--")).collect()
    }

    /// Returns the words of a JSON array, as in `CMD ["run"]`, wherever it begins.
    fn array(&self) -> Vec<String> {
        let start = self.rest.find('[').expect("the exec form, which needs no shell");
        serde_json::from_str(&self.rest[start..]).expect("a JSON array of words")
    }
}

/// Returns the instructions, with continued lines joined and comments removed.
fn instructions() -> Vec<Instruction> {
    let lines: Vec<String> = read("Dockerfile")
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(str::to_owned)
        .collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let split = |line: &str| {
        let (name, rest) =
            line.trim().split_once(char::is_whitespace).expect("an instruction and its arguments");
        Instruction { name: name.to_owned(), rest: rest.trim().to_owned() }
    };
    joined.lines().filter(|line| !line.trim().is_empty()).map(split).collect()
}

/// All instructions of a name.
fn all(name: &str) -> Vec<Instruction> {
    instructions().into_iter().filter(|instruction| instruction.name == name).collect()
}

/// Returns the last instruction of a name, which is the effective one.
fn last(name: &str) -> Instruction {
    all(name).pop().unwrap_or_else(|| panic!("no {name}"))
}

/// The environment of the image.
fn environment() -> BTreeMap<String, String> {
    let pairs = all("ENV")
        .into_iter()
        .flat_map(|env| env.words().into_iter().map(str::to_owned).collect::<Vec<_>>());
    pairs
        .filter_map(|pair| {
            pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(CONTEXT).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn manifest() -> toml::Table {
    read("Cargo.toml").parse().expect("a manifest")
}

/// Whether a path of the repository is in the build context. Supports only the patterns in the
/// repository's `.dockerignore`: `*`, and `!NAME` for an exception.
fn is_in_context(path: &str) -> bool {
    let ignore = read(".dockerignore");
    let patterns: Vec<&str> = ignore
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(patterns.first(), Some(&"*"), "everything is kept out first");
    let (_, let_in) = patterns.split_at(1);
    let names: Vec<&str> = let_in
        .iter()
        .map(|line| line.strip_prefix('!').expect("only what is let in again"))
        .collect();
    Path::new(CONTEXT).join(path).exists()
        && names.contains(&path.split('/').next().unwrap_or(path))
}

/// Returns the paths that the build stage copies from the build context.
fn copied() -> Vec<String> {
    let from_context = all("COPY").into_iter().filter(|copy| !copy.rest.contains("--from="));
    from_context
        .flat_map(|copy| {
            let words = copy.words();
            words[..words.len() - 1].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn what_is_copied_is_in_the_build_context() {
    let missing: Vec<String> =
        copied().into_iter().filter(|source| !is_in_context(source)).collect();
    assert!(
        !copied().is_empty() && missing.is_empty(),
        "not there, or kept out by .dockerignore: {missing:?}"
    );
}

#[test]
fn what_the_source_includes_is_copied() {
    let mut included = 0;
    for entry in walk(&Path::new(CONTEXT).join("src")) {
        let text = std::fs::read_to_string(&entry).unwrap();
        for (at, name) in
            text.match_indices("include_str!(\"").chain(text.match_indices("include_bytes!(\""))
        {
            let relative = text[at + name.len()..].split('"').next().unwrap();
            let path = entry
                .parent()
                .unwrap()
                .join(relative)
                .canonicalize()
                .unwrap_or_else(|error| panic!("{relative}: {error}"));
            let path = path
                .strip_prefix(Path::new(CONTEXT).canonicalize().unwrap())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let is_copied = copied()
                .iter()
                .any(|source| path == *source || path.starts_with(&format!("{source}/")));
            // Fixtures are included by tests, which are not built.
            assert!(
                is_copied || path.starts_with("tests/"),
                "{} includes {path}, which isn't copied",
                entry.display()
            );
            included += 1;
        }
    }
    assert!(included > 0, "nothing was read: the configuration's defaults are included");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

#[test]
fn targets_that_are_not_copied_have_their_paths_in_the_manifest() {
    // cargo looks for a target without a path, and fails if the file is missing. It looks for a
    // target with a path only when it builds that target.
    for kind in ["bench", "test", "example"] {
        let targets = manifest()
            .get(kind)
            .and_then(|targets| targets.as_array().cloned())
            .unwrap_or_default();
        for target in targets {
            assert!(target.get("path").is_some(), "[[{kind}]] without a path: {target}");
        }
    }
}

#[test]
fn the_binary_that_is_copied_is_one_of_the_manifest() {
    let copy = all("COPY")
        .into_iter()
        .find(|copy| copy.rest.contains("--from="))
        .expect("a binary from the build stage");
    let binary = copy.words()[0].rsplit('/').next().unwrap().to_owned();
    let manifest = manifest();
    let binaries = manifest["bin"].as_array().unwrap();
    assert!(
        binaries.iter().any(|bin| bin["name"].as_str() == Some(&binary)),
        "{binary} is no binary of Cargo.toml"
    );
    assert_eq!(
        last("ENTRYPOINT").array(),
        [binary],
        "the entry point is the binary that was copied"
    );
}

#[test]
fn the_binary_is_built_with_the_optimised_profile() {
    let build = all("RUN").into_iter().find(|run| run.rest.contains("cargo build"));
    let build = build.expect("a build").rest;
    assert!(build.contains("--profile dist "), "{build}");
    assert!(build.contains(" target/dist/onceward "), "{build}");
    let profiles = &manifest()["profile"];
    let dist = &profiles["dist"];
    assert_eq!(dist["opt-level"].as_integer(), Some(3));
    assert_eq!(dist["lto"].as_str(), Some("fat"));
    // The measured binary is the shipped binary.
    assert_eq!(profiles["bench"]["inherits"].as_str(), Some("dist"));

    // Inheriting from `release` also inherits its lower levels for single packages.
    let raised = |name: &str| {
        let package = dist["package"].get(name);
        package.is_some_and(|package| package["opt-level"].as_integer() == Some(3))
    };
    for name in profiles["release"]["package"].as_table().unwrap().keys() {
        assert!(raised(name), "[profile.dist.package.{name}] does not optimise");
    }
}

#[test]
fn the_ports_are_those_that_the_gateway_listens_on() {
    let environment = environment();
    let port = |name: &str, default: &str| {
        let address = environment.get(name).map_or(default, String::as_str);
        address.rsplit(':').next().unwrap().to_owned()
    };
    let listened = [port("ONCEWARD_LISTEN", DEFAULT_LISTEN), port("ONCEWARD_ADMIN", DEFAULT_ADMIN)];
    assert_eq!(last("EXPOSE").words(), listened);
}

#[test]
fn the_defaults_are_those_of_the_documented_configuration() {
    let defaults: toml::Table = read("config/default.toml").parse().expect("the defaults");
    assert_eq!(
        (defaults["listen"].as_str(), defaults["admin"].as_str()),
        (Some(DEFAULT_LISTEN), Some(DEFAULT_ADMIN))
    );
}

#[test]
fn clients_reach_the_gateway_and_only_the_container_reaches_its_admin_port() {
    let environment = environment();
    assert_eq!(environment.get("ONCEWARD_LISTEN").map(String::as_str), Some("0.0.0.0:8080"));
    assert_eq!(
        environment.get("ONCEWARD_ADMIN"),
        None,
        "the default is loopback, which needs no token"
    );
}

#[test]
fn the_records_are_kept_on_the_volume() {
    let volume = last("VOLUME").rest;
    assert_eq!(environment().get("ONCEWARD_STORE"), Some(&format!("file:{volume}")));
}

#[test]
fn the_health_check_and_the_command_are_real() {
    let check = last("HEALTHCHECK").array();
    let command = last("CMD").array();
    assert_eq!(check[0], "onceward");
    for arguments in [&check[1..], &command[..]] {
        let help = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(help.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&help.stderr));
    }
}

#[test]
fn the_gateway_is_not_root() {
    let user = last("USER").rest;
    assert!(!matches!(user.split(':').next(), None | Some("" | "0" | "root")), "USER {user}");
    let order: Vec<String> =
        instructions().into_iter().map(|instruction| instruction.name).collect();
    let (user, stage) = (
        order.iter().rposition(|name| name == "USER"),
        order.iter().rposition(|name| name == "FROM"),
    );
    assert!(user > stage, "the user is that of the final stage");
}
