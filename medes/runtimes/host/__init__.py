"""Host's side: deploys functions as warm processes and sends each request to one of them."""
