//! Questions of clients: those that the node answers itself, and those that the dataplane is asked.

use std::collections::BTreeSet;

use podway_proto::control::{Daemon, DataplaneLink, Request, Response};
use podway_proto::dataplane;
use podway_proto::server::ClientId;
use podway_proto::trace::{Trace, TracePacket};
use podway_proto::{ErrorBody, ErrorCode};

use super::Node;
use crate::bulk;
use crate::health::Health;
use crate::netlink;
use crate::report;
use crate::session::LinkState;
use crate::trace;

/// What a client wants that waits for an answer of the dataplane.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Status,
    Counters,
    Drops,
    Trace(Box<TracePacket>),
    Perf,
    PerfReset,
    /// That its log is changed, and then control's if that is wanted.
    Log {
        directives: String,
        both: bool,
    },
}

impl Node {
    /// Answers a question, or notes that the dataplane has to be asked first.
    pub(super) fn answer(&mut self, client: ClientId, request: &Request) -> Option<Response> {
        let world = self.world();
        Some(match request {
            Request::NodeList => Response::Nodes {
                nodes: report::nodes(&world, self.health.as_ref()),
            },
            Request::RouteShow => Response::Routes {
                routes: report::routes(&world, &self.index),
            },
            Request::PortShow => Response::Ports {
                ports: report::ports(&world),
            },
            Request::RouteGet { address } => match report::route_get(&world, &self.index, *address)
            {
                Ok(answer) => Response::RouteGet(answer),
                Err(error) => Response::Error(error),
            },
            Request::Export => Response::Entries(bulk::entries(&self.desired)),
            Request::Status => return self.ask(client, Question::Status),
            Request::Counters => return self.ask(client, Question::Counters),
            Request::Drops => return self.ask(client, Question::Drops),
            Request::TracePacket(asked) => {
                let asked = trace::whole(asked, &world);
                return self.ask(client, Question::Trace(Box::new(asked)));
            }
            Request::Perf => return self.ask(client, Question::Perf),
            Request::PerfReset => return self.ask(client, Question::PerfReset),
            Request::Log { directives, daemon } => return self.log(client, directives, *daemon),
            // Clients are greeted before they come here, and changes were made before.
            _ => Response::Error(ErrorBody::new(ErrorCode::BadRequest, "not a question")),
        })
    }

    fn ask(&mut self, client: ClientId, question: Question) -> Option<Response> {
        let request = match &question {
            Question::Status => dataplane::Request::Status,
            Question::Counters => dataplane::Request::Counters,
            Question::Drops => dataplane::Request::Drops,
            Question::Trace(asked) => dataplane::Request::TracePacket(TracePacket::clone(asked)),
            Question::Perf => dataplane::Request::Perf,
            Question::PerfReset => dataplane::Request::PerfReset,
            Question::Log { directives, .. } => dataplane::Request::Log {
                directives: directives.clone(),
            },
        };
        match self.session.ask(request) {
            Ok(ticket) => {
                self.questions.insert(ticket, (client, question));
                None
            }
            Err(error) => Some(self.relay(question, Err(error))),
        }
    }

    /// Changes what is logged. Of both daemons the dataplane is first: where it cannot, nothing has
    /// changed.
    fn log(
        &mut self,
        client: ClientId,
        directives: &str,
        daemon: Option<Daemon>,
    ) -> Option<Response> {
        if let Err(error) = podway_proto::log::check(directives) {
            return Some(Response::Error(error));
        }
        if daemon == Some(Daemon::Control) {
            return Some(change_log(directives).into());
        }
        let question = Question::Log {
            directives: directives.to_owned(),
            both: daemon.is_none(),
        };
        self.ask(client, question)
    }

    /// The response to a client whose question the dataplane answered, or did not.
    pub(super) fn relay(
        &mut self,
        question: Question,
        result: Result<dataplane::Response, ErrorBody>,
    ) -> Response {
        match (question, result) {
            (Question::Status, Ok(dataplane::Response::Status(status))) => {
                self.status(Some(Box::new(status)))
            }
            (Question::Status, _) => self.status(None),
            (Question::Counters, Ok(dataplane::Response::Counters(counters))) => {
                Response::Counters {
                    imbalances: counters.books.imbalances(),
                    counters,
                }
            }
            (Question::Drops, Ok(dataplane::Response::Drops(drops))) => Response::Drops(drops),
            (Question::Trace(asked), Ok(dataplane::Response::TracePacket(trace))) => {
                self.traced(*asked, *trace)
            }
            (Question::Perf, Ok(dataplane::Response::Perf(perf))) => Response::Perf(perf),
            (Question::PerfReset, Ok(dataplane::Response::Done)) => Response::Done,
            (Question::Log { directives, both }, Ok(dataplane::Response::Done)) => match both {
                true => change_log(&directives).into(),
                false => Response::Done,
            },
            (_, Ok(dataplane::Response::Error(error)) | Err(error)) => Response::Error(error),
            (_, Ok(_)) => Response::Error(ErrorBody::new(
                ErrorCode::System,
                "podway-dataplane answered something else; install both from one release",
            )),
        }
    }

    /// Adds what the kernel says, if it has the packet.
    fn traced(&mut self, packet: TracePacket, trace: Trace) -> Response {
        let way = match trace::asks_kernel(&packet, &trace) {
            None => None,
            Some(address) => match self.requests.lookup(address) {
                Ok(way) => Some((address, way)),
                Err(error) => return system_error(&error),
            },
        };
        let answer = trace::answer(&self.world(), &self.index, packet, trace, way);
        Response::TracePacket(Box::new(answer))
    }

    fn status(&self, status: Option<Box<dataplane::Status>>) -> Response {
        let dataplane = match self.session.state() {
            LinkState::Disconnected(reason) => DataplaneLink::Disconnected {
                reason: reason.to_owned(),
            },
            LinkState::Syncing => DataplaneLink::Syncing {
                refused: self.session.refused(),
                status,
            },
            LinkState::Synced => DataplaneLink::Synced {
                refused: self.session.refused(),
                status,
            },
        };
        let errors = self.kernel_errors.iter().chain(self.route_errors.values());
        let mut errors: BTreeSet<String> = errors.cloned().collect();
        errors.extend(self.table.error().map(str::to_owned));
        errors.extend(self.mirror_error.clone());
        let mut status = report::status(
            &self.world(),
            &self.index,
            dataplane,
            self.session.drift(),
            errors.into_iter().collect(),
            self.health.as_ref().map(Health::status),
        );
        status.hints.extend(self.netfilter.hints(&self.world()));
        status.hints.extend(self.reverse_path.hints());
        Response::Status(Box::new(status))
    }
}

fn system_error(error: &netlink::Error) -> Response {
    Response::Error(ErrorBody::new(ErrorCode::System, error.to_string()))
}

/// Changes what this process logs.
fn change_log(directives: &str) -> Result<(), ErrorBody> {
    podway_proto::log::set(directives)?;
    tracing::info!(directives, "what is logged has changed");
    Ok(())
}
