//! `onceward report`: reports the requests on shadow routes that enforcing would have replayed or
//! refused. It uses the admin port of a running gateway.

use std::process::ExitCode;
use std::time::Duration;

use super::ReportArgs;
use crate::admin::client::Client;
use crate::admin::{ReportRowView, ReportView};
use crate::telemetry::{escape, escape_json};

pub(super) fn report(args: ReportArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    match super::block_on(client.report(&super::since(args.since))) {
        Ok(Ok(report)) if args.json => match serde_json::to_string_pretty(&report) {
            Ok(text) => super::print_text(&escape_json(&text)),
            Err(error) => super::fail(&error, 1),
        },
        Ok(Ok(report)) => super::print_text(&in_words(&report)),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

const HEADER: [&str; 5] = ["ROUTE", "CLIENT", "WOULD", "WHY", "REQUESTS"];

fn in_words(report: &ReportView) -> String {
    let since = escape(&report.since);
    let known = match report.lag_ms {
        Some(lag_ms) => {
            format!("as of {} ago", humantime::format_duration(Duration::from_millis(lag_ms)))
        }
        None => "with an unknown lag".to_owned(),
    };
    if report.rows.is_empty() {
        return format!(
            "Since {since} (hours are counted whole), {known}: nothing.\n{}",
            why_nothing(report)
        );
    }
    let mut text = format!(
        "What enforcing would have done on shadow routes since {since} (hours are counted whole), \
         {known}.\n\
         A client is the beginning of its scope's hash; for a route without a scope, the hash of \
         the field that distinguishes clients. Requests that would simply have run are not \
         listed.\n\n"
    );
    text.push_str(&table(&report.rows));
    text.push_str(&format!(
        "\nIn total {} would have got the stored response, and {} would have been refused.",
        report.would_replay, report.would_refuse
    ));
    if report.cut {
        text.push_str(&format!(
            "\nThese are the {} rows with the most requests; the totals also count the omitted \
             rows.",
            report.rows.len()
        ));
    }
    text
}

/// Explains an empty report. If the log is disabled, the gateway answers with an error instead.
fn why_nothing(report: &ReportView) -> String {
    if report.shadow_routes.is_empty() {
        return "No route is in shadow mode: set mode = \"shadow\" on the routes to observe."
            .to_owned();
    }
    format!(
        "In shadow mode: {}. These routes got no duplicate, and no request that would have been \
         refused. Or they got it less than a few seconds ago, or before [log] was enabled. \
         onceward_shadow_total counts all requests on these routes.",
        escape(&report.shadow_routes.join(", "))
    )
}

fn table(rows: &[ReportRowView]) -> String {
    let cells = rows.iter().map(|row| {
        let requests = row.requests.to_string();
        let cell = |text: &str| escape(text).into_owned();
        let optional = |text: &Option<String>| cell(text.as_deref().unwrap_or("-"));
        [cell(&row.route), optional(&row.scope), cell(&row.would), optional(&row.problem), requests]
    });
    let lines: Vec<[String; 5]> = std::iter::once(HEADER.map(str::to_owned)).chain(cells).collect();
    let mut widths = [0; 5];
    for line in &lines {
        widths
            .iter_mut()
            .zip(line)
            .for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let [route, client, would, why, requests] = widths;
    let line = |[r, c, w, y, n]: &[String; 5]| {
        format!("{r:route$}  {c:client$}  {w:would$}  {y:why$}  {n:>requests$}\n")
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: Vec<ReportRowView>, shadow_routes: &[&str]) -> ReportView {
        let shadow_routes = shadow_routes.iter().map(|route| (*route).to_owned()).collect();
        let since = "2026-11-24T19:00:00.000Z".to_owned();
        ReportView {
            since,
            would_replay: 12,
            would_refuse: 3,
            rows,
            cut: false,
            shadow_routes,
            lag_ms: Some(250),
        }
    }

    fn row(
        scope: Option<&str>,
        would: &str,
        problem: Option<&str>,
        requests: u64,
    ) -> ReportRowView {
        let (scope, problem) = (scope.map(str::to_owned), problem.map(str::to_owned));
        ReportRowView { route: "payments".into(), scope, would: would.into(), problem, requests }
    }

    #[test]
    fn rows_are_in_columns_under_a_header_with_totals_below() {
        let rows = vec![
            row(Some("0123456789abcdef"), "replay", None, 12),
            row(None, "refuse", Some("key-missing"), 3),
        ];
        let mut report = of(rows, &["payments"]);
        let text = in_words(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains(
                "since 2026-11-24T19:00:00.000Z (hours are counted whole), as of 250ms ago"
            ),
            "{text}"
        );
        assert_eq!(lines[3], "ROUTE     CLIENT            WOULD   WHY          REQUESTS");
        assert_eq!(lines[4], "payments  0123456789abcdef  replay  -                  12");
        assert_eq!(lines[5], "payments  -                 refuse  key-missing         3");
        assert_eq!(
            lines[7],
            "In total 12 would have got the stored response, and 3 would have been refused."
        );
        assert_eq!(lines.len(), 8, "{text}");
        report.cut = true;
        assert!(in_words(&report).ends_with(
            "the 2 rows with the most requests; the totals also count the omitted rows."
        ));
    }

    #[test]
    fn an_empty_report_explains_why_it_may_be_empty() {
        let unwatched = in_words(&of(Vec::new(), &[]));
        assert!(
            unwatched.contains(": nothing.") && unwatched.contains("No route is in shadow mode"),
            "{unwatched}"
        );
        let watched = in_words(&of(Vec::new(), &["payments", "refunds"]));
        assert!(
            watched.contains("In shadow mode: payments, refunds.")
                && watched.contains("before [log] was enabled"),
            "{watched}"
        );
    }
}
