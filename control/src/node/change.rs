//! Changes of what was told: those of a round are made one after the other, saved together, and
//! taken back together where that fails.

use podway_proto::control::{Request, Response, ViaSpec};
use podway_proto::entries::{Entries, EntryKey, RefusedEntry};
use podway_proto::server::ClientId;
use podway_proto::{ErrorBody, ErrorCode};

use super::Node;
use crate::bulk::{self, Bulk};
use crate::clients::Task;
use crate::entry::Entry;
use crate::index::Index;
use crate::observed::Observed;
use crate::report;
use crate::settings::Settings;
use crate::state::Fixed;
use crate::store::StoreError;

/// Changes that are made and not saved yet.
#[derive(Debug, Default)]
struct Group {
    /// What was there before each of them.
    before: Vec<Entry>,
    /// What is there now.
    after: Vec<Entry>,
    /// Who asked for them, or for what is so because of them.
    clients: Vec<ClientId>,
}

type Responses = Vec<(ClientId, Response)>;

impl Node {
    /// Makes the changes that are asked for. What they are answered, and the requests that ask for
    /// none.
    pub(super) fn carry_out(
        &mut self,
        tasks: Vec<(ClientId, Task)>,
    ) -> (Responses, Vec<(ClientId, Request)>) {
        let (mut group, mut responses, mut questions) =
            (Group::default(), Responses::new(), Vec::new());
        for (client, task) in tasks {
            let request = match task {
                Task::Request(request) => request,
                Task::Bulk(bulk) => {
                    // It is checked against what stays, whatever becomes of it.
                    self.save(std::mem::take(&mut group), &mut responses);
                    responses.push((client, self.bulk(&bulk)));
                    continue;
                }
            };
            let Some(before) = Entry::about(&request, &self.desired) else {
                questions.push((client, request));
                continue;
            };
            match self.change(request, &before) {
                Ok(after) => {
                    group.clients.push(client);
                    if after != before {
                        self.note(&before, &after);
                        group.before.push(before);
                        group.after.push(after);
                    }
                }
                Err(error) => responses.push((client, Response::Error(error))),
            }
        }
        self.save(group, &mut responses);
        (responses, questions)
    }

    /// Makes the change that `request` asks for, if it can be. What its entry is now.
    fn change(&mut self, request: Request, before: &Entry) -> Result<Entry, ErrorBody> {
        let fixed = fixed(&self.settings);
        let told_link = |via: &ViaSpec| check_told_link(&self.observed, via);
        let desired = &mut self.desired;
        match request.clone() {
            Request::NodeSet(node) => desired.set_node(node)?,
            Request::NodeDel { name } => desired.delete_node(&name, &self.index)?,
            Request::RouteAdd(route) => {
                told_link(&route.via)?;
                desired.set_route(route, false, fixed, &self.index)?;
            }
            Request::RouteReplace(route) => {
                told_link(&route.via)?;
                desired.set_route(route, true, fixed, &self.index)?;
            }
            Request::RouteDel { prefix } => desired.delete_route(prefix)?,
            Request::PortAdd(port) => {
                report::check_link(&self.observed, &port.interface)?;
                desired.add_port(port, fixed)?;
            }
            Request::PortDel { interface } => desired.delete_port(&interface, fixed)?,
            _ => {}
        }
        let after = Entry::about(&request, &self.desired);
        Ok(after.unwrap_or_else(|| before.clone()))
    }

    /// Notes what follows from a change that was made.
    fn note(&mut self, before: &Entry, after: &Entry) {
        self.index.change(before, after);
        let mut dirt = std::mem::take(&mut self.dirt);
        dirt.entry(before, after, &self.world(), &self.index);
        self.dirt = dirt;
    }

    /// Saves a group and answers whoever waits for it. If it cannot be saved nothing of it stays.
    fn save(&mut self, group: Group, responses: &mut Responses) {
        let saved = if group.after.is_empty() {
            Ok(())
        } else {
            self.store.save(&group.after, &self.desired)
        };
        let answer = match saved {
            Ok(()) => Response::Done,
            Err(error) => {
                let changes = group.before.into_iter().zip(&group.after);
                for (before, after) in changes.rev() {
                    before.clone().put(&mut self.desired);
                    self.note(after, &before);
                }
                self.store.take_back(&self.desired);
                not_saved(&error)
            }
        };
        let clients = group.clients.into_iter();
        responses.extend(clients.map(|client| (client, answer.clone())));
    }

    /// Makes all that a bulk asks for, or nothing.
    fn bulk(&mut self, bulk: &Bulk) -> Response {
        let after = match bulk::apply(&self.desired, bulk, fixed(&self.settings)) {
            Ok(after) => after,
            Err(refused) => return Response::BulkRefused { refused },
        };
        let change = bulk::difference(&self.desired, &after);
        let refused = self.without_link(&change.added);
        if !refused.is_empty() {
            return Response::BulkRefused { refused };
        }
        if bulk.dry_run || change.is_empty() {
            return Response::BulkDone(change);
        }
        if let Err(error) = self.store.save(&Entry::of(&change), &after) {
            self.store.take_back(&self.desired);
            return not_saved(&error);
        }
        self.desired = after;
        self.index = Index::of(&self.desired);
        let mut dirt = std::mem::take(&mut self.dirt);
        dirt.bulk(&change, &self.world(), &self.index);
        self.dirt = dirt;
        Response::BulkDone(change)
    }

    /// Those of new entries that name a link which does not exist.
    fn without_link(&self, new: &Entries) -> Vec<RefusedEntry> {
        let routes = new.routes.iter().map(|route| {
            let checked = check_told_link(&self.observed, &route.via);
            (EntryKey::from(route), checked)
        });
        let ports = new.ports.iter().map(|port| {
            let checked = report::check_link(&self.observed, &port.interface);
            (EntryKey::from(port), checked)
        });
        routes
            .chain(ports)
            .filter_map(|(entry, checked)| {
                let error = checked.err()?;
                Some(RefusedEntry { entry, error })
            })
            .take(bulk::MAX_REFUSED)
            .collect()
    }
}

fn not_saved(error: &StoreError) -> Response {
    tracing::error!("{error}; the change is not made");
    let message = format!("nothing was changed: {error}");
    Response::Error(ErrorBody::new(ErrorCode::System, message))
}

fn fixed(settings: &Settings) -> Fixed<'_> {
    Fixed {
        node_name: &settings.node_name,
        uplink: settings.uplink.as_deref(),
        vni: settings.vni,
        also_vnis: &settings.also_vnis,
    }
}

/// Whether the link that was told for a router exists, if one was.
fn check_told_link(observed: &Observed, via: &ViaSpec) -> Result<(), ErrorBody> {
    via.members().iter().try_for_each(|via| match via {
        ViaSpec::Gateway {
            interface: Some(interface),
            ..
        } => report::check_link(observed, interface),
        _ => Ok(()),
    })
}
