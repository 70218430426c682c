/** GET /v1/models and /v1/models/{id}: the base and every adapter as models, in vLLM's form. */
import type { ModelCard } from '../../service/served-models.js';
import type { AppContext, RouteDeps } from '../context.js';

export function getModels(c: AppContext, deps: RouteDeps): Response {
  return c.json({ object: 'list', data: deps.service.models.list().map(modelBody) });
}

export function getModel(c: AppContext, deps: RouteDeps): Response {
  return c.json(modelBody(deps.service.models.card(c.req.param('id') ?? '')));
}

function modelBody(card: ModelCard): object {
  return {
    id: card.id,
    object: 'model',
    created: card.createdSeconds,
    owned_by: 'manyfold',
    root: card.root,
    parent: card.parent,
    max_model_len: card.maxModelLen,
    permission: [permissionBody(card)],
  };
}

/** Fixed: some clients of OpenAI's older interface still read it. */
function permissionBody(card: ModelCard): object {
  return {
    id: `modelperm-${card.id}`,
    object: 'model_permission',
    created: card.createdSeconds,
    allow_create_engine: false,
    allow_sampling: true,
    allow_logprobs: true,
    allow_search_indices: false,
    allow_view: true,
    allow_fine_tuning: false,
    organization: '*',
    group: null,
    is_blocking: false,
  };
}
