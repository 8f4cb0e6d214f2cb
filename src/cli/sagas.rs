//! `onceward sagas`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::running_sagas::{RunningSagasVerb, running_sagas};
use crate::config::{Config, Overrides, SagaConfig};
use crate::saga::plan::{Compensation, FieldSource, Plan, Step, StepRequest};
use crate::saga::render::{RenderError, RenderedAnswer, RenderedRequest};
use crate::saga::trial::{SagaSample, SagaTrial, StepTrial};
use crate::telemetry::print_error;

#[derive(Debug, Args)]
pub(super) struct SagasArgs {
    #[command(subcommand)]
    verb: SagasVerb,
}

#[derive(Debug, Subcommand)]
enum SagasVerb {
    /// Render the templates of a configuration's sagas against a sample of a request, with made-up
    /// answers of the steps. Nothing is sent, and no gateway is needed. Exit 0 if everything can be
    /// rendered, 1 if not, 2 for invalid arguments, samples or configurations.
    #[command(after_help = TEST_EXAMPLE)]
    Test(TestArgs),
    #[command(flatten)]
    Running(RunningSagasVerb),
}

const TEST_EXAMPLE: &str = "\
Example:
  $ cat sample.json
  {
    \"body\": { \"sku\": \"A-1\", \"amount\": 10.00 },
    \"headers\": { \"X-Region\": \"eu\" },
    \"path\": { \"shop\": \"7\" },
    \"query\": { \"dry\": \"no\" }
  }
  $ onceward sagas test onceward.toml --request sample.json --saga checkout

All members are optional. A made-up answer has the first status of success, a Location, an ETag, and
a JSON object with id and with each member that a template uses. To give a step another answer, add
it under its name:
    \"steps\": { \"reserve\": { \"status\": 201, \"headers\": {}, \"body\": { \"id\": 4711 } } }";

#[derive(Debug, Args)]
struct TestArgs {
    /// The configuration file.
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// The sample, a file with a JSON object (`-` for stdin). Members: body, headers, path, query.
    #[arg(long, value_name = "SAMPLE")]
    request: PathBuf,
    /// Only the saga with this name.
    #[arg(long, value_name = "NAME")]
    saga: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The API to protect, if `run` gets it as a flag and the file does not contain it.
    #[arg(long, env = "ONCEWARD_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
}

pub(super) fn sagas(args: SagasArgs) -> ExitCode {
    let args = match args.verb {
        SagasVerb::Test(args) => args,
        SagasVerb::Running(verb) => return running_sagas(verb),
    };
    match read(&args) {
        Ok((sagas, sample)) => test(&sagas, &sample, args.json),
        Err(error) => super::fail(&error, 2),
    }
}

/// Reads the sagas and the sample.
fn read(args: &TestArgs) -> Result<(Vec<SagaConfig>, SagaSample), String> {
    let name = args.config.display().to_string();
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| format!("can't read {name}: {error}"))?;
    let overrides = Overrides { upstream: args.upstream.clone(), ..Overrides::default() };
    let config = Config::load(Some((&name, &text)), overrides)
        .map_err(|faults| format!("the configuration is faulty\n{faults}"))?;
    let names: Vec<String> = config.sagas.iter().map(|saga| saga.plan.saga.clone()).collect();
    let wanted = |saga: &SagaConfig| args.saga.as_ref().is_none_or(|name| *name == saga.plan.saga);
    let sagas: Vec<SagaConfig> = config.sagas.into_iter().filter(wanted).collect();
    match &args.saga {
        _ if names.is_empty() => return Err(format!("{name} has no [[sagas]]")),
        Some(saga) if sagas.is_empty() => {
            return Err(format!("{name} has no saga {saga:?}; it has {}", names.join(", ")));
        }
        _ => {}
    }
    let sample = read_sample(&args.request)?;
    let sample = SagaSample::parse(&sample).map_err(|error| error.to_string())?;
    let checks = sagas.iter().map(|saga| sample.check(&saga.plan));
    checks.collect::<Result<(), _>>().map_err(|error| error.to_string())?;
    Ok((sagas, sample))
}

fn read_sample(file: &Path) -> Result<String, String> {
    if file == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        return read.map(|_| text).map_err(|error| format!("can't read stdin: {error}"));
    }
    std::fs::read_to_string(file).map_err(|error| format!("can't read {}: {error}", file.display()))
}

fn test(sagas: &[SagaConfig], sample: &SagaSample, json: bool) -> ExitCode {
    let trials: Vec<(&SagaConfig, SagaTrial)> = sagas
        .iter()
        .map(|saga| (saga, SagaTrial::new(&saga.plan, &saga.keep_headers, sample)))
        .collect();
    let printed = if json {
        let sagas: Vec<SagaView<'_>> =
            trials.iter().map(|(saga, trial)| saga_view(&saga.plan, trial)).collect();
        super::print_json(&TrialView { answers: "made up, or from the sample", sagas })
    } else {
        let texts: Vec<String> =
            trials.iter().map(|(saga, trial)| saga_text(saga, trial)).collect();
        super::print_text(texts.join("\n").trim_end())
    };
    let mut code = printed;
    for (saga, trial) in &trials {
        for (place, error) in trial.failures() {
            print_error(&format!("onceward: saga {:?}: {place}{error}", saga.plan.saga));
            code = ExitCode::from(1);
        }
    }
    code
}

/// Describes a trial.
fn saga_text(saga: &SagaConfig, trial: &SagaTrial) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_saga(&mut text, saga, trial);
    text
}

fn write_saga(text: &mut String, saga: &SagaConfig, trial: &SagaTrial) -> std::fmt::Result {
    let plan = &saga.plan;
    writeln!(
        text,
        "saga {:?}; nothing was sent, and the answers of the steps are made up",
        plan.saga
    )?;
    for step in &trial.steps {
        write_step(text, plan, step)?;
    }
    write_answer(text, "answer if completed", &trial.answer)?;
    match &trial.failed {
        Some(failed) => write_answer(text, "answer if failed", failed),
        None => writeln!(text, "answer if failed: a problem document"),
    }
}

fn write_step(text: &mut String, plan: &Plan, trial: &StepTrial) -> std::fmt::Result {
    let step = &plan.steps[trial.position];
    let after = names_of(plan, step);
    let begins =
        if after.is_empty() { "at once".to_owned() } else { format!("after {}", after.join(", ")) };
    let pivot = if step.pivot { ", pivot" } else { "" };
    writeln!(text, "step {:?}: {begins}{pivot}, to {}", step.name, step.sending.upstream)?;
    if let (Some(when), Some(holds)) = (&step.when, &trial.when) {
        match holds {
            Ok(true) => writeln!(text, "  when {when}: true")?,
            Ok(false) => writeln!(text, "  when {when}: false, so the step is skipped")?,
            Err(error) => writeln!(text, "  can't be rendered: {error}")?,
        }
    }
    if let Some(action) = &trial.action {
        write_request(text, "request", step, &step.action, action)?;
    }
    if let Some(answer) = &trial.answer {
        let body = answer.body.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let source = if trial.is_made_up { "made-up answer" } else { "answer of the sample" };
        writeln!(text, "  {source}: {} {body}", answer.status)?;
    }
    match (&step.compensation, &trial.compensation) {
        (Compensation::Request { request, .. }, Some(rendered)) => {
            write_request(text, "undone by", step, request, rendered)
        }
        (Compensation::None, _) => writeln!(text, "  never undone"),
        _ => Ok(()),
    }
}

fn write_request(
    text: &mut String,
    label: &str,
    step: &Step,
    template: &StepRequest,
    rendered: &Result<RenderedRequest, RenderError>,
) -> std::fmt::Result {
    let request = match rendered {
        Ok(request) => request,
        Err(error) => return writeln!(text, "  {label}: can't be rendered: {error}"),
    };
    writeln!(text, "  {label}: {} {}", request.method, request.target)?;
    writeln!(text, "    {}: (the key of the step)", step.sending.key_header)?;
    if request.body.is_some() && !template.headers.contains_key("content-type") {
        writeln!(text, "    content-type: application/json")?;
    }
    for (name, source) in &template.headers {
        match source {
            FieldSource::Text(_) => {
                let rendered = request.headers.iter().find(|(other, _)| other == name);
                let value = rendered.map_or("", |(_, value)| value.as_str());
                writeln!(text, "    {name}: {value}")?;
            }
            FieldSource::Env(variable) => {
                writeln!(text, "    {name}: (the environment variable {variable})")?;
            }
            FieldSource::File(file) => writeln!(text, "    {name}: (the file {file})")?,
        }
    }
    request.body.as_ref().map_or(Ok(()), |body| writeln!(text, "    {body}"))
}

fn write_answer(
    text: &mut String,
    label: &str,
    answer: &Result<RenderedAnswer, RenderError>,
) -> std::fmt::Result {
    match answer {
        Ok(RenderedAnswer { status, body }) => {
            let body = body.as_deref().unwrap_or("(the id and the status of the saga)");
            writeln!(text, "{label}: {status} {body}")
        }
        Err(error) => writeln!(text, "{label}: can't be rendered: {error}"),
    }
}

/// Returns the names of the steps that a step waits for.
fn names_of<'p>(plan: &'p Plan, step: &Step) -> Vec<&'p str> {
    step.after.iter().filter_map(|at| plan.steps.get(*at)).map(|step| step.name.as_str()).collect()
}

/// The result of a test, as JSON.
#[derive(Serialize)]
struct TrialView<'t> {
    /// The origin of the steps' answers.
    answers: &'static str,
    sagas: Vec<SagaView<'t>>,
}

#[derive(Serialize)]
struct SagaView<'t> {
    saga: &'t str,
    steps: Vec<StepView<'t>>,
    answer: AnswerView<'t>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<AnswerView<'t>>,
    /// Number of parts that can't be rendered.
    failures: usize,
}

#[derive(Serialize)]
struct StepView<'t> {
    name: &'t str,
    after: Vec<&'t str>,
    pivot: bool,
    upstream: &'t str,
    #[serde(skip_serializing_if = "Option::is_none")]
    when: Option<WhenView<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestView<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<StepAnswerView<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compensation: Option<RequestView<'t>>,
}

#[derive(Serialize)]
struct WhenView<'t> {
    condition: &'t str,
    #[serde(flatten)]
    result: Rendered<bool>,
}

#[derive(Serialize)]
struct StepAnswerView<'t> {
    status: u16,
    body: Option<std::borrow::Cow<'t, str>>,
    is_made_up: bool,
}

/// A rendered part, or the reason why it can't be rendered.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Rendered<T> {
    Holds(T),
    Error(String),
}

#[derive(Serialize)]
#[serde(untagged)]
enum RequestView<'t> {
    Rendered {
        method: &'t str,
        path: &'t str,
        key: &'t str,
        headers: BTreeMap<&'t str, FieldView<'t>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<&'t str>,
    },
    Failed {
        error: String,
    },
}

/// A header field: its value, or the name of its secret.
#[derive(Serialize)]
#[serde(untagged)]
enum FieldView<'t> {
    Text(&'t str),
    Secret(&'t FieldSource),
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnswerView<'t> {
    Rendered { status: u16, body: Option<&'t str> },
    Failed { error: String },
}

fn saga_view<'t>(plan: &'t Plan, trial: &'t SagaTrial) -> SagaView<'t> {
    SagaView {
        saga: &plan.saga,
        steps: trial.steps.iter().map(|step| step_view(plan, step)).collect(),
        answer: answer_view(&trial.answer),
        failed: trial.failed.as_ref().map(answer_view),
        failures: trial.failures().len(),
    }
}

fn step_view<'t>(plan: &'t Plan, trial: &'t StepTrial) -> StepView<'t> {
    let step = &plan.steps[trial.position];
    let when = step.when.as_deref().zip(trial.when.as_ref());
    let compensation = match &step.compensation {
        Compensation::None => None,
        Compensation::Request { request, .. } => Some(request),
    };
    StepView {
        name: &step.name,
        after: names_of(plan, step),
        pivot: step.pivot,
        upstream: &step.sending.upstream,
        when: when.map(|(condition, result)| WhenView {
            condition,
            result: match result {
                Ok(holds) => Rendered::Holds(*holds),
                Err(error) => Rendered::Error(error.to_string()),
            },
        }),
        request: trial.action.as_ref().map(|action| request_view(step, &step.action, action)),
        answer: trial.answer.as_ref().map(|answer| StepAnswerView {
            status: answer.status,
            body: answer.body.as_deref().map(String::from_utf8_lossy),
            is_made_up: trial.is_made_up,
        }),
        compensation: compensation
            .zip(trial.compensation.as_ref())
            .map(|(template, rendered)| request_view(step, template, rendered)),
    }
}

fn request_view<'t>(
    step: &'t Step,
    template: &'t StepRequest,
    rendered: &'t Result<RenderedRequest, RenderError>,
) -> RequestView<'t> {
    let request = match rendered {
        Ok(request) => request,
        Err(error) => return RequestView::Failed { error: error.to_string() },
    };
    let texts = request.headers.iter();
    let mut headers: BTreeMap<&str, FieldView<'_>> =
        texts.map(|(name, value)| (name.as_str(), FieldView::Text(value))).collect();
    let secrets =
        template.headers.iter().filter(|(_, source)| !matches!(source, FieldSource::Text(_)));
    headers.extend(secrets.map(|(name, source)| (name.as_str(), FieldView::Secret(source))));
    RequestView::Rendered {
        method: &request.method,
        path: &request.target,
        key: &step.sending.key_header,
        headers,
        body: request.body.as_deref(),
    }
}

fn answer_view(answer: &Result<RenderedAnswer, RenderError>) -> AnswerView<'_> {
    match answer {
        Ok(answer) => AnswerView::Rendered { status: answer.status, body: answer.body.as_deref() },
        Err(error) => AnswerView::Failed { error: error.to_string() },
    }
}
