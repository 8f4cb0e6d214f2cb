//! Two gateways with their secrets in opposite orders over one store, in every interleaving of
//! their store calls.

use tokio::sync::Notify;

use super::*;
use crate::engine::tests::policy;
use crate::event::ChangedSaga;
use crate::gate::{OwnedSaga, SagaRequest, SagaRunner, SagaSummary};
use crate::store::DueSagas;

const OLD: &[u8] = &[1; 32];
const NEW: &[u8] = &[2; 32];

/// The order in which the gateways may call the store, call by call. A gateway that is done is
/// skipped.
#[derive(Default)]
struct Turns {
    order: Mutex<VecDeque<usize>>,
    done: Mutex<[bool; 2]>,
    moved: Notify,
}

impl Turns {
    async fn of(&self, who: usize) {
        loop {
            let moved = self.moved.notified();
            {
                let (mut order, done) = (self.order.lock().unwrap(), self.done.lock().unwrap());
                while order.front().is_some_and(|next| done[*next]) {
                    order.pop_front();
                }
                if done[who] || order.front().is_none_or(|next| *next == who) {
                    order.pop_front().filter(|_| !done[who]);
                    self.moved.notify_waiters();
                    return;
                }
            }
            moved.await;
        }
    }

    fn is_done(&self, who: usize) {
        self.done.lock().unwrap()[who] = true;
        self.moved.notify_waiters();
    }
}

/// One gateway's connection to the common store.
struct Way {
    inner: Arc<Memory>,
    who: usize,
    turns: Arc<Turns>,
    loads: AtomicUsize,
    /// Number of loads that are answered before one load fails.
    loads_left: AtomicUsize,
    /// Number of writes that arrive before the connection breaks.
    writes_left: AtomicUsize,
}

#[async_trait]
impl Records for Way {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        self.turns.of(self.who).await;
        let one_less = |left: usize| left.checked_sub(1);
        if self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
            return Err(StoreError::NotApplied("no connection".into()));
        }
        self.inner.write(slot, expected, next, lifetime, events).await
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.turns.of(self.who).await;
        self.loads.fetch_add(1, Ordering::SeqCst);
        if self.loads_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(StoreError::NotApplied("no connection".into()));
        }
        self.inner.load(slot).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.turns.of(self.who).await;
        self.inner.remains(slot).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.inner.due(limit).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.inner.due_sagas(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.inner.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

struct Fleet {
    inner: Arc<Memory>,
    turns: Arc<Turns>,
    executed: Arc<AtomicUsize>,
    policy: Policy,
}

struct Member {
    way: Arc<Way>,
    gate: Arc<Gate>,
    guarded: Arc<ProtectedRoute>,
    executed: Arc<AtomicUsize>,
}

impl Fleet {
    fn new(policy: Policy, order: &[usize]) -> Fleet {
        let turns =
            Turns { order: Mutex::new(order.iter().copied().collect()), ..Turns::default() };
        let inner = Arc::new(Memory::new(Clock::system().anchored()));
        Fleet { inner, turns: Arc::new(turns), executed: Arc::default(), policy }
    }

    fn member(&self, who: usize, secrets: &[&[u8]]) -> Member {
        let (inner, turns) = (self.inner.clone(), self.turns.clone());
        let loads_left = AtomicUsize::new(usize::MAX);
        let (loads, writes_left) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let way = Arc::new(Way { inner, who, turns, loads, loads_left, writes_left });
        let settings = Settings {
            hashing: Hashing::under(secrets.iter().copied()).unwrap(),
            ..Settings::default()
        };
        let (meter, clock) = (Meter::new(), Clock::system());
        let gate = Gate::new(
            Store { records: way.clone(), ..Store::from(way.inner.clone()) },
            clock,
            Entropy::from_seed(7 + who as u64),
            meter.clone(),
            settings,
        );
        let policy = self.policy.clone();
        let route = Route {
            paths: vec!["/pay".into()],
            methods: vec![http::Method::POST],
            upstream: 0,
            policy,
        };
        let guarded = ProtectedRoute {
            meter: meter.route("payments"),
            route: Arc::new(route),
            response_timeout: Duration::from_secs(60),
            keyring: None,
            saga: None,
            unkeyed: None,
        };
        Member { way, gate, guarded: Arc::new(guarded), executed: self.executed.clone() }
    }

    fn executed(&self) -> usize {
        self.executed.load(Ordering::SeqCst)
    }
}

impl Member {
    async fn pay(&self) -> PayResult {
        let executed = self.executed.clone();
        let upstream = service_fn(move |_: Request<Payload<Full<Bytes>>>| {
            executed.fetch_add(1, Ordering::SeqCst);
            async {
                Ok::<_, Infallible>(
                    Response::builder().status(201).body(Full::new(Bytes::new())).unwrap(),
                )
            }
        });
        let request = buffered(&self.gate, &self.guarded, "k");
        let answered = self.gate.handle(&self.guarded, request, upstream).await?;
        Ok((answered.response.status(), answered.answer == Answer::Replayed))
    }

    async fn settle(&self) {
        while !self.gate.tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_every_interleaving_of_two_gateways_with_opposite_secrets_a_request_runs_at_most_once() {
    const CALLS: u32 = 8;
    let mut ran_at_once = 0;
    for schedule in 0..1_u32 << CALLS {
        let order: Vec<usize> = (0..CALLS).map(|call| (schedule >> call & 1) as usize).collect();
        let fleet = Fleet::new(policy(), &order);
        let (a, b) = (fleet.member(0, &[OLD, NEW]), fleet.member(1, &[NEW, OLD]));
        let one = async |member: &Member, who: usize| {
            let answer = member.pay().await;
            fleet.turns.is_done(who);
            answer
        };
        let answers = tokio::join!(one(&a, 0), one(&b, 1));
        let executed = fleet.executed();
        assert!(executed <= 1, "{order:?}: {answers:?}");
        ran_at_once += executed;
        for answer in [&answers.0, &answers.1] {
            let known = matches!(answer, &PAID | &REPLAYED | Err(Refusal::InFlight { .. }));
            assert!(known, "{order:?}: {answer:?}");
        }
        a.settle().await;
        b.settle().await;
        // A client that was refused retries, at either gateway.
        assert!(matches!(a.pay().await, PAID | REPLAYED), "{order:?}");
        assert_eq!((b.pay().await, a.pay().await), (REPLAYED, REPLAYED), "{order:?}");
        assert_eq!(fleet.executed(), 1, "{order:?}");
    }
    assert!(ran_at_once > 100, "giving up is the exception: {ran_at_once}");
}

#[tokio::test(start_paused = true)]
async fn a_record_under_any_secret_is_found_at_every_step_of_a_rotation() {
    let fleet = Fleet::new(policy(), &[]);
    assert_eq!(fleet.member(0, &[OLD]).pay().await, PAID);
    for secrets in [&[OLD, NEW][..], &[NEW, OLD], &[OLD]] {
        assert_eq!(fleet.member(0, secrets).pay().await, REPLAYED, "{secrets:?}");
    }
    assert_eq!(
        fleet.member(0, &[NEW]).pay().await,
        PAID,
        "without the old secret the operation runs again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_under_another_secret_blocks_the_key() {
    let day = Duration::from_secs(24 * 60 * 60);
    let fleet = Fleet::new(Policy { tombstone: day, ..policy() }, &[]);
    assert_eq!(fleet.member(0, &[OLD]).pay().await, PAID);
    let (slot, _) = Hashing::under([OLD]).unwrap().identity(
        &crate::key::OperationParts {
            space: crate::key::Space::Enforced,
            route: &fleet.policy.route,
            scope: &crate::key::Scope::shared(),
            key: b"k",
            variant: b"",
        },
        crate::key::Caller::nobody(),
    );
    // The result of the payment is gone, and its tombstone remains.
    let held = fleet.inner.load(&slot).await.unwrap().unwrap();
    let moment = Lifetime { keep: Duration::ZERO, due: None, tombstone: None };
    let ended = Record { version: held.record.version.next(), ..held.record.clone() };
    fleet.inner.swap(&slot, Some(held.record.version), &ended, moment).await.unwrap();
    assert_eq!(fleet.inner.load(&slot).await.unwrap(), None);
    let answer = fleet.member(0, &[NEW, OLD]).pay().await;
    assert_eq!(answer, Err(Refusal::ResultExpired { slot }));
    assert_eq!(fleet.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_secret_needs_no_look_up_and_two_secrets_need_two() {
    for (secrets, loads) in [(&[OLD][..], 0), (&[OLD, NEW], 2), (&[], 0)] {
        let fleet = Fleet::new(policy(), &[]);
        let member = fleet.member(0, secrets);
        assert_eq!(member.pay().await, PAID);
        assert_eq!(member.way.loads.load(Ordering::SeqCst), loads);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_not_be_looked_up_is_not_sent() {
    for answered in [0, 1] {
        let fleet = Fleet::new(policy(), &[]);
        let member = fleet.member(0, &[NEW, OLD]);
        member.way.loads_left.store(answered, Ordering::SeqCst);
        assert!(unavailable(&member.pay().await), "{answered}");
        member.settle().await;
        assert_eq!(fleet.executed(), 0);
        member.way.loads_left.store(usize::MAX, Ordering::SeqCst);
        assert_eq!(member.pay().await, PAID, "the claim was given up");
    }
}

/// Counts the sagas that a gateway runs.
struct CountingRunner(Arc<AtomicUsize>);

impl SagaRunner for CountingRunner {
    fn first_content(&self, _: &str, _: &SagaRequest<'_>) -> Result<Bytes, Refusal> {
        Ok(Bytes::from_static(b"pending"))
    }

    fn started(&self, _: &Bytes) -> Option<ChangedSaga> {
        None
    }

    fn run(&self, _: OwnedSaga) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn summary(&self, _: &Bytes) -> Option<SagaSummary> {
        None
    }

    fn has_progressed(&self, _: &Bytes) -> bool {
        false
    }

    fn held_operation(&self, _: &Bytes) -> Option<Slot> {
        None
    }

    fn stopping(&self) -> CancellationToken {
        CancellationToken::new()
    }
}

impl Member {
    /// Sends a request for a saga. Its client does not wait.
    async fn begin_saga(&self) -> Result<http::StatusCode, Refusal> {
        let mut request = buffered(&self.gate, &self.guarded, "k");
        request.parts.headers.insert("prefer", http::HeaderValue::from_static("respond-async"));
        let upstream = service_fn(|_: Request<Payload<Full<Bytes>>>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        });
        let answered = self.gate.handle(&self.guarded, request, upstream).await?;
        Ok(answered.response.status())
    }
}

#[tokio::test(start_paused = true)]
async fn in_every_interleaving_of_two_gateways_with_opposite_secrets_a_saga_begins_at_most_once() {
    const CALLS: u32 = 9;
    let mut begun = 0;
    // A gateway may lose its connection after any of its writes: the claim, the start of the saga,
    // and the release of a claim that is given up.
    for writes_left in [1, 2, usize::MAX] {
        for schedule in 0..1_u32 << CALLS {
            let order: Vec<usize> =
                (0..CALLS).map(|call| (schedule >> call & 1) as usize).collect();
            let fleet = Fleet::new(policy(), &order);
            let (mut a, mut b) = (fleet.member(0, &[OLD, NEW]), fleet.member(1, &[NEW, OLD]));
            for member in [&mut a, &mut b] {
                let guarded = Arc::get_mut(&mut member.guarded).unwrap();
                guarded.saga = Some(Arc::new(CountingRunner(fleet.executed.clone())));
            }
            a.way.writes_left.store(writes_left, Ordering::SeqCst);
            let one = async |member: &Member, who: usize| {
                let answer = member.begin_saga().await;
                fleet.turns.is_done(who);
                answer
            };
            let answers = tokio::join!(one(&a, 0), one(&b, 1));
            let ran = fleet.executed();
            assert!(ran <= 1, "{order:?}: {answers:?}");
            begun += ran;
            b.settle().await;
            // Other gateways take over what is a saga in the store.
            let sagas = fleet.inner.list(Listing::Sagas, None, 10).await.unwrap().records.len();
            assert!(ran <= sagas && sagas <= 1, "{writes_left} {order:?}: {answers:?}");
        }
    }
    assert!(begun > 100, "giving up is the exception: {begun}");
}
