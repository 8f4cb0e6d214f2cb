//! How a layer is set up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::engine::Policy;
use crate::gate::SagaRunner;
use crate::refusal::RefusalRenderer;
use crate::route::Route;
use crate::token::Keyring;

/// The settings of a layer, besides those of its gate.
pub struct LayerSettings {
    /// The routes, each with the longest time from sending a request to the end of its response.
    pub routes: Vec<(Route, Duration)>,
    /// The keys that verify tokens, by the name of the route that has its scope in a token. Such a
    /// route refuses every request until its keys are loaded.
    pub keyrings: HashMap<String, Arc<Keyring>>,
    /// The runners of sagas, by the name of the saga's route.
    pub sagas: HashMap<String, Arc<dyn SagaRunner>>,
    /// Renders refusals.
    pub renderer: RefusalRenderer,
    /// Whether clients find the policy at `/.well-known/idempotency`, unless a route covers that
    /// path.
    pub publish_policy: bool,
    /// How long a protected request's body may take to arrive.
    pub body_timeout: Duration,
    /// Longest silence of the service while it streams the response to a request that no route
    /// covers.
    pub silence: Duration,
}

/// Longest time from sending a request to the end of its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a protected request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

impl LayerSettings {
    /// Returns the settings that a gateway has without a configuration file: one route, named
    /// "default", that protects every POST and PATCH with an `Idempotency-Key` on any path. The
    /// policy is not published.
    pub fn standard() -> LayerSettings {
        let route = Route {
            paths: vec!["/".to_owned(), "/{*rest}".to_owned()],
            methods: vec![Method::POST, Method::PATCH],
            upstream: 0,
            policy: Policy::standard("default", RESPONSE_TIMEOUT),
        };
        LayerSettings {
            routes: vec![(route, RESPONSE_TIMEOUT)],
            keyrings: HashMap::new(),
            sagas: HashMap::new(),
            renderer: RefusalRenderer::default(),
            publish_policy: false,
            body_timeout: BODY_TIMEOUT,
            silence: RESPONSE_TIMEOUT,
        }
    }
}
