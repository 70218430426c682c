/** The mock's ways to misbehave that are no stream of tokens. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Fault } from './mock-options.js';

const EVENT_STREAM = { 'content-type': 'text/event-stream' };

/** Answers the fault; false when the stream of tokens itself has to do it. */
export function answerFault(fault: Fault, { socket }: IncomingMessage, response: ServerResponse): boolean {
  const refuse = (status: number, headers: Record<string, string>): void => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers });
    response.end(JSON.stringify({ error: { message: `refused\u0007 with ${status}`, type: 'mock' } }));
  };
  switch (fault) {
    case 'fault-429':
      refuse(429, { 'retry-after': '7' });
      return true;
    case 'fault-429-date':
      refuse(429, { 'retry-after': 'Fri, 01 Jan 2100 00:00:00 GMT' });
      return true;
    case 'fault-400':
      refuse(400, {});
      return true;
    case 'fault-500':
      refuse(500, {});
      return true;
    case 'fault-error-event':
      response.writeHead(200, EVENT_STREAM);
      response.end('data: {"error":{"message":"out of pages"}}\n\n');
      return true;
    case 'fault-html':
      response.writeHead(200, { 'content-type': 'text/html' }).end('<html>a proxy</html>');
      return true;
    case 'fault-hang':
      return true;
    default:
      return answerBrokenBytes(fault, socket, response);
  }
}

function answerBrokenBytes(fault: Fault, socket: Socket, response: ServerResponse): boolean {
  switch (fault) {
    case 'fault-garbage':
      response
        .writeHead(200, EVENT_STREAM)
        .end(Buffer.from([0, 255, 254, 10, 13, 7, 10, 10, 58, 100, 97, 0xc3, 10, 10]));
      return true;
    case 'fault-not-http':
      socket.end('\u0000\u0001 this is no HTTP\r\n\r\n');
      return true;
    case 'fault-bad-json':
      response.writeHead(200, EVENT_STREAM).end('data: {"choices": [\n\n');
      return true;
    case 'fault-empty':
      response
        .writeHead(200, EVENT_STREAM)
        .end('data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n');
      return true;
    case 'fault-endless-line':
      response.writeHead(200, EVENT_STREAM);
      writeWithoutEnd(response);
      return true;
    case 'fault-reset':
      socket.resetAndDestroy();
      return true;
    default:
      return false;
  }
}

const FILLER = Buffer.alloc(64 * 1024, 'x');

/** As fast as it is read, until the client has enough of it. */
function writeWithoutEnd(response: ServerResponse): void {
  while (!response.destroyed && response.write(FILLER));
  if (!response.destroyed) response.once('drain', () => writeWithoutEnd(response));
}
