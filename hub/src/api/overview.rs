//! The tasks of all of one's sessions in one list.

use std::sync::Arc;

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    view::{Names, TaskView},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(recent_tasks))
}

/// The tasks of the sessions that the caller owns or is in, newest first.
#[utoipa::path(get, path = "/api/tasks", tag = "tasks", params(PageQuery), responses((status = 200, body = Page<TaskView>)))]
async fn recent_tasks(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<TaskView>> {
    let tasks = api.hub.recent_tasks(&caller.actor, page.cursor()?, page.limit() + 1).await?;
    Ok(Json(Names::new(&api.hub).tasks(page.of(tasks, |task| task.id.to_string())).await?))
}
