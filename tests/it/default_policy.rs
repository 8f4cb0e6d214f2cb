//! The default policy is written twice: in code, for the layer without a configuration, and in
//! `config/`.

use onceward::config::{Config, IMPLICIT_ROUTE, Overrides};
use onceward::engine::Policy;
use onceward::layer::LayerSettings;

#[test]
fn the_layer_has_the_policy_of_a_gateway_without_a_file() {
    let upstream = Some("http://127.0.0.1:9000".to_owned());
    let config = Config::load(None, Overrides { upstream, ..Overrides::default() }).unwrap();
    let standard = LayerSettings::standard();

    let [configured] = &config.routes[..] else { panic!("{} routes", config.routes.len()) };
    let [(route, response_timeout)] = &standard.routes[..] else {
        panic!("{} routes", standard.routes.len())
    };
    // `Debug` prints every field, so that one that is added later is compared as well.
    assert_eq!(format!("{:#?}", route.policy), format!("{:#?}", configured.policy));
    assert_eq!(&*route.policy.route, IMPLICIT_ROUTE);
    assert_eq!(route.paths, configured.paths);
    assert_eq!(route.methods, configured.methods);
    assert_eq!(*response_timeout, config.upstream.response_timeout);
    assert_eq!(standard.silence, config.upstream.response_timeout);
    assert_eq!(standard.body_timeout, config.limits.body_timeout);
    assert_eq!(standard.renderer.base_url, config.problem_base_url);
}

#[test]
fn another_response_timeout_is_how_long_uncertain_operations_rest() {
    let upstream = "[upstream]\nurl = \"http://127.0.0.1:9000\"\nresponse_timeout = \"7s\"\n";
    let config = Config::load(Some(("own", upstream)), Overrides::default()).unwrap();
    let policy = Policy::standard(IMPLICIT_ROUTE, config.upstream.response_timeout);
    assert_eq!(format!("{policy:#?}"), format!("{:#?}", config.routes[0].policy));
}
