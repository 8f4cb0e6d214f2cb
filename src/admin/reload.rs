//! `POST /v1/reload`: asks whoever runs the gateway to read its configuration again.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::Admin;
use super::auth::Operator;
use super::problem::AdminRefusal;

/// Requests to reload that wait for the one before them. More at once are a mistake, and told so.
const WAITING_MAX: usize = 4;

/// Longest wait for the answer: the store may have to be asked, and the files of keys and certificates to be read.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why a configuration was not taken, one sentence each.
pub type Faults = Vec<String>;

/// Where reloads are asked for. Cheap to clone.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<ReloadAsked>);

/// A reload that was asked for, by whom, and where the answer goes.
pub struct ReloadAsked {
    /// Who asked.
    pub operator: String,
    answer: oneshot::Sender<Result<(), Faults>>,
}

impl Reloads {
    /// Where to ask, and where what is asked arrives.
    pub fn channel() -> (Reloads, mpsc::Receiver<ReloadAsked>) {
        let (asked, arriving) = mpsc::channel(WAITING_MAX);
        (Reloads(asked), arriving)
    }
}

impl ReloadAsked {
    /// Tells whether the configuration was taken.
    pub fn answer(self, result: Result<(), Faults>) {
        // Who asked may have left.
        let _ = self.answer.send(result);
    }
}

/// Has the configuration read again.
#[utoipa::path(
    post, path = "/v1/reload", tag = "process",
    responses((status = 200, description = "It is in force"), super::openapi::Reloaded),
)]
pub(super) async fn reload(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<serde_json::Value>, AdminRefusal> {
    let (answer, answered) = oneshot::channel();
    if admin.reloads.0.try_send(ReloadAsked { operator: operator.0, answer }).is_err() {
        let why = "others are waiting to be taken already, or the process is about to end";
        return Err(AdminRefusal::ReloadUnavailable(why));
    }
    match tokio::time::timeout(ANSWER_MAX, answered).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({ "result": "applied" }))),
        Ok(Ok(Err(faults))) => Err(AdminRefusal::ReloadRefused(faults.join("; "))),
        Ok(Err(_)) | Err(_) => Err(AdminRefusal::ReloadUnavailable(
            "the configuration was not read in time; the metrics tell what became of it",
        )),
    }
}
