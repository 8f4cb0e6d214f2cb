//! The plans of the sagas: the configuration of the gateway, and the rules of the checker.

use std::time::Duration;

/// The longest time of an attempt of a step.
pub const STEP_TIMEOUT: Duration = Duration::from_millis(1200);
/// How long an operation in doubt rests before an "absent" counts. The latest execution of a
/// request comes well before, also if its connection was cut at once.
pub const UNCERTAIN_AFTER: Duration = Duration::from_millis(3500);

/// The services, which are also the names of the upstreams.
pub const SERVICES: [&str; 3] = ["stock", "card", "carrier"];

/// What a step does about an operation in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It asks the service, which answers from its ledger.
    Probe,
    /// It sends the request again. The service deduplicates this step by its keys.
    Forward,
    /// An operator decides.
    Hold,
}

/// How a step is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// By a request.
    Request,
    /// Never: the step is the pivot, or after it.
    Never,
}

/// A step. Its service has the same position in [`SERVICES`] as the step in the plan.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub name: &'static str,
    /// The positions of the steps before it.
    pub after: &'static [usize],
    /// Whether the step is executed only if the amount is above zero.
    pub if_paid: bool,
    pub pivot: bool,
    pub undo: Undo,
    pub doubt: Doubt,
}

/// A saga of the configuration.
#[derive(Debug)]
pub struct Plan {
    pub name: &'static str,
    /// Longest time of the way forward, if it is shorter than a history.
    pub timeout: Option<&'static str>,
    pub steps: [Step; 3],
}

const fn step(name: &'static str, after: &'static [usize], doubt: Doubt) -> Step {
    Step { name, after, if_paid: false, pivot: false, undo: Undo::Request, doubt }
}

/// All plans.
pub const PLANS: [Plan; 6] = [
    Plan {
        name: "line",
        timeout: None,
        steps: [
            step("reserve", &[], Doubt::Probe),
            step("charge", &[0], Doubt::Probe),
            step("ship", &[1], Doubt::Probe),
        ],
    },
    Plan {
        name: "branches",
        timeout: None,
        steps: [
            step("reserve", &[], Doubt::Probe),
            step("charge", &[], Doubt::Hold),
            step("ship", &[], Doubt::Forward),
        ],
    },
    Plan {
        name: "join",
        timeout: None,
        steps: [
            step("reserve", &[], Doubt::Forward),
            step("charge", &[], Doubt::Probe),
            step("ship", &[0, 1], Doubt::Hold),
        ],
    },
    Plan {
        name: "pivot",
        timeout: None,
        steps: [
            step("reserve", &[], Doubt::Hold),
            Step { pivot: true, undo: Undo::Never, ..step("charge", &[0], Doubt::Probe) },
            Step { undo: Undo::Never, ..step("ship", &[1], Doubt::Probe) },
        ],
    },
    Plan {
        name: "sometimes",
        timeout: None,
        steps: [
            step("reserve", &[], Doubt::Forward),
            Step { if_paid: true, ..step("charge", &[0], Doubt::Forward) },
            step("ship", &[1], Doubt::Forward),
        ],
    },
    Plan {
        name: "hasty",
        timeout: Some("1500ms"),
        steps: [
            step("reserve", &[], Doubt::Forward),
            step("charge", &[0], Doubt::Probe),
            step("ship", &[0], Doubt::Probe),
        ],
    },
];

impl Plan {
    /// Returns whether a step is after another one, directly or through others.
    pub fn is_after(&self, later: usize, earlier: usize) -> bool {
        let before = self.steps[later].after;
        before.contains(&earlier) || before.iter().any(|step| self.is_after(*step, earlier))
    }

    /// Returns the position of a step.
    pub fn position(&self, name: &str) -> usize {
        self.steps.iter().position(|step| step.name == name).unwrap()
    }

    /// Returns the table of the saga.
    fn toml(&self) -> String {
        let ids = self.steps.map(|step| {
            let id = format!("steps.{}.body.id", step.name);
            let id = if step.if_paid {
                format!("{{{{ {id} if request.body.amount > 0 else none }}}}")
            } else {
                format!("{{{{ {id} }}}}")
            };
            format!("\"{}\": {id}", step.name)
        });
        let timeout = self.timeout.map_or(String::new(), |text| format!("timeout = \"{text}\"\n"));
        let steps: String = (0..self.steps.len()).map(|at| self.step_toml(at)).collect();
        format!(
            "[[sagas]]\nname = \"{}\"\npath = \"/v1/{0}\"\nwait_timeout = \"1500ms\"\n{timeout}\
             answer = {{ status = 201, body = '{{ \"order\": {{{{ request.body.order }}}}, {} }}' }}\n{steps}",
            self.name,
            ids.join(", ")
        )
    }

    fn step_toml(&self, at: usize) -> String {
        let Step { name, after, if_paid, pivot, undo, doubt } = self.steps[at];
        let after: Vec<&str> = after.iter().map(|step| self.steps[*step].name).collect();
        let mut text = format!("[[sagas.steps]]\nname = \"{name}\"\nafter = {after:?}\n");
        if at > 0 {
            text += &format!("upstream = \"{}\"\n", SERVICES[at]);
        }
        if if_paid {
            text += "when = \"request.body.amount > 0\"\n";
        }
        if pivot {
            text += "pivot = true\n";
        }
        text += match doubt {
            Doubt::Probe => {
                "on_uncertain = \"probe\"\nprobe = { method = \"GET\", path = \"/probe/{key}\", \
                 found = [\"200\"], absent = [\"404\"] }\n"
            }
            Doubt::Forward => "on_uncertain = \"forward\"\n",
            Doubt::Hold => "on_uncertain = \"hold\"\n",
        };
        let headers = format!("headers = {{ X-Dedup = \"{}\" }}", doubt == Doubt::Forward);
        let order = "{{ request.body.order }}";
        text += &format!(
            "timeout = \"{}ms\"\nlease = \"2s\"\nuncertain_after = \"{}ms\"\n\
             retry = {{ first = \"100ms\", max = \"800ms\", attempts = 4 }}\n\
             request = {{ path = \"/action/{name}/{order}\", {headers} }}\n",
            STEP_TIMEOUT.as_millis(),
            UNCERTAIN_AFTER.as_millis()
        );
        if undo == Undo::Request {
            text += &format!(
                "compensate = {{ path = \"/undo/{name}/{order}/{{{{ steps.{name}.body.id }}}}\", {headers} }}\n"
            );
        }
        text
    }
}

/// Returns the tables of all sagas.
pub fn sagas() -> String {
    PLANS.iter().map(Plan::toml).collect()
}
