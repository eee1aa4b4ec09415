//! The chat page that anybody may open at `/c/{slug}`: what it looks like for each tenant, and the files it consists of.
//!
//! Nobody has proved anything when a page is opened. So all that ever leaves this module of a tenant is what its page shows
//! to everybody: branding, texts, who may embed it and whether visitors may chat. It is made once for each version of the
//! settings and kept, compressed; opening a page then costs a look into memory. See [`looks`] for what a stranger may cost.
//!
//! What a tenant wrote is text here: templates escape it, colours and fonts come from checked values, and the policy that
//! goes with a page lets no other script run than our own files.

pub mod assets;
mod looks;
mod render;
mod texts;
mod theme;

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use self::assets::Assets;
use self::looks::Looks;
use self::texts::Texts;
use crate::access::{AccessError, VisitorLimits};
use crate::configuration::ConfigurationError;
use crate::tenant_db::{Directory, TenantDatabases, TenantDbError};

pub use render::{Rendered, WidgetLook};

/// The pages of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    texts: Arc<Texts>,
    assets: Arc<Assets>,
    looks: Arc<Looks>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// A tenant's page, for everybody.
#[derive(Debug)]
pub struct Page {
    /// The page itself.
    pub page: Rendered,
    /// The page as it is shown in a frame.
    pub embedded: Rendered,
    /// The tenant's sign, as SVG.
    pub icon: String,
    /// What the button on a client's own site looks like.
    pub widget: WidgetLook,
    /// The origins that may show the page in a frame.
    pub allowed_origins: Vec<String>,
    /// What visitors may do, if there may be any.
    pub visitors: Option<VisitorLimits>,
}

/// Why a page could not be made.
#[derive(Debug, Error)]
pub enum PageError {
    /// The tenant could not be looked up.
    #[error("look the tenant up")]
    Access(#[from] AccessError),
    /// Its database could not be had.
    #[error("reach the tenant's database")]
    TenantDb(#[from] TenantDbError),
    /// Its settings could not be read.
    #[error("read the tenant's settings")]
    Configuration(#[from] ConfigurationError),
    /// A template could not be filled in.
    #[error("fill in the page's template")]
    Template(#[from] askama::Error),
    /// A page could not be compressed.
    #[error("compress the page")]
    Compress(#[from] std::io::Error),
}

impl Pages {
    /// The pages of the tenants of this directory.
    ///
    /// # Errors
    /// If a built-in file is not well formed.
    pub fn new(directory: Arc<Directory>, databases: Arc<TenantDatabases>) -> anyhow::Result<Self> {
        let (texts, assets) = (Texts::load()?, Assets::load()?);
        Ok(Self { texts: Arc::new(texts), assets: Arc::new(assets), looks: Arc::new(Looks::new(directory, databases)) })
    }

    /// A tenant's page. Nothing if there is no such tenant, or it is not in service: nobody is told which.
    ///
    /// # Errors
    /// If it is not known and cannot be read.
    pub async fn find(&self, slug: &str) -> Result<Option<Arc<Page>>, PageError> {
        self.looks.find(slug, |slug, settings| render::page(slug, settings, &self.texts, &self.assets)).await
    }

    /// What visitors of a tenant may do, a few seconds old at most. Nothing if there may be none, or there is no such
    /// tenant.
    ///
    /// # Errors
    /// As [`Pages::find`].
    pub async fn visitor_limits(&self, slug: &str) -> Result<Option<VisitorLimits>, PageError> {
        Ok(self.find(slug).await?.and_then(|page| page.visitors))
    }

    /// The page in the place of one that cannot be shown: there is none, or just not now. `tags` are the languages of whoever
    /// wanted to see it, as in `Accept-Language`.
    ///
    /// # Errors
    /// Never, unless the template is broken.
    pub fn unavailable(&self, temporarily: bool, tags: &str) -> Result<Rendered, PageError> {
        render::unavailable(temporarily, self.texts.of_reader(tags), &self.assets)
    }

    /// The files that all pages share.
    #[must_use]
    pub fn assets(&self) -> &Assets {
        &self.assets
    }
}
